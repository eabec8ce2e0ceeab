from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.report.labels import Box, place

FRAME = Box(0, 0, 300, 200)


def test_a_lone_note_goes_up_and_to_the_right():
    (spot,) = place([(100, 100, "λ 1")], [], FRAME, size=10, gap=4)
    assert (spot.index, spot.x, spot.y) == (0, 104, 104)


def test_an_obstacle_moves_it_and_the_frame_holds_it():
    (spot,) = place([(100, 100, "λ 1")], [Box(100, 100, 130, 130)], FRAME, size=10, gap=4)
    assert spot.x < 100
    assert spot.y < 100
    (spot,) = place([(299, 199, "λ 1")], [], FRAME, size=10, gap=4)
    assert spot.x < 290
    assert spot.y < 190


def test_no_room_means_no_note_and_the_first_has_precedence():
    assert place([(100, 100, "λ 1")], [FRAME], FRAME, size=10, gap=4) == []
    tight = Box(95, 95, 135, 116)
    spots = place([(100, 100, "first"), (100, 100, "later")], [], tight, size=10, gap=4)
    assert [spot.index for spot in spots] == [0]
    assert place([(100, 100, "")], [], FRAME, size=10, gap=4) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=25))
def test_notes_never_cover_points_or_each_other(points):
    obstacles = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    spots = place([(x, y, "σ 0.1") for x, y in points], obstacles, FRAME, size=10, gap=5)
    boxes = [Box(spot.x, spot.y, spot.x + 29, spot.y + 10) for spot in spots]  # 5 characters of 5.8 points
    for index, box in enumerate(boxes):
        assert box.left >= 0
        assert box.right <= 300.001
        for other in [*obstacles, *boxes[:index]]:
            apart_x = box.right <= other.left + 1e-9 or other.right <= box.left + 1e-9
            apart_y = box.top <= other.bottom + 1e-9 or other.top <= box.bottom + 1e-9
            assert apart_x or apart_y
