from sfumato.attacks.base import judge_outcome


def test_convergence_is_judged_on_held_out_errors():
    falling = [1.0 / (epoch + 1) for epoch in range(20)]
    verdict = judge_outcome(falling, trivial=10.0)
    assert not verdict.converged
    assert "attack for more epochs" in verdict.reason
    flat = [1.0] + [0.1] * 19
    assert judge_outcome(flat, trivial=10.0).converged
    useless = judge_outcome(flat, trivial=0.1)
    assert not useless.converged
    assert "mean image" in useless.reason
    annealed = [0.8**epoch for epoch in range(10)] + [0.8**10] * 10
    verdict = judge_outcome(annealed, trivial=10.0)
    assert not verdict.converged
    assert "second quarter" in verdict.reason
    assert not judge_outcome([0.5], trivial=10.0).converged  # one epoch shows nothing, nor do a few that stand still
    assert "show nothing" in judge_outcome([0.5] * 7, trivial=10.0).reason
