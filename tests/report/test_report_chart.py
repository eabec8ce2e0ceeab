from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.report.chart import place

FRAME = (0, 0, 300, 200)


def test_a_lone_note_goes_up_and_to_the_right():
    assert place([(100, 100, "λ 1")], [], FRAME, size=10, gap=4) == {0: (104, 104)}


def test_an_obstacle_moves_it_and_the_frame_holds_it():
    x, y = place([(100, 100, "λ 1")], [(100, 100, 130, 130)], FRAME, size=10, gap=4)[0]
    assert max(x, y) < 100
    x, y = place([(299, 199, "λ 1")], [], FRAME, size=10, gap=4)[0]
    assert x < 290
    assert y < 190


def test_no_room_means_no_note_and_the_first_has_precedence():
    assert place([(100, 100, "λ 1")], [FRAME], FRAME, size=10, gap=4) == {}
    assert list(place([(100, 100, "first"), (100, 100, "later")], [], (95, 95, 135, 116), size=10, gap=4)) == [0]
    assert place([(100, 100, "")], [], FRAME, size=10, gap=4) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=25))
def test_notes_never_cover_points_or_each_other(points):
    obstacles = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    spots = place([(x, y, "σ 0.1") for x, y in points], obstacles, FRAME, size=10, gap=5)
    boxes = [(x, y, x + 29, y + 10) for x, y in spots.values()]  # 5 characters of 5.8 points
    for index, (left, bottom, right, top) in enumerate(boxes):
        assert left >= 0
        assert right <= 300.001
        for other in [*obstacles, *boxes[:index]]:
            apart_x = right <= other[0] + 1e-9 or other[2] <= left + 1e-9
            apart_y = top <= other[1] + 1e-9 or other[3] <= bottom + 1e-9
            assert apart_x or apart_y
