"""Every source stays within a sequence of its share, whatever the weights, the phase and the other workers."""

from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.data.schedule import Schedule
from tests.conftest import through_checkpoint

WEIGHTS = {"finepdfs": 9, "fineweb_edu": 5, "c4": 4, "usmle": 2}


def draw(schedule: Schedule, sequences: int) -> list[str]:
    drawn = []
    for _ in range(sequences):
        drawn.append(schedule.next_source())
        schedule.draw(drawn[-1])
    return drawn


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=12), st.integers(1, 300))
def test_every_source_stays_within_one_sequence_of_its_share_at_every_prefix(weights, sequences):
    schedule = Schedule({str(i): weight for i, weight in enumerate(weights)})
    for drawn in range(1, sequences + 1):
        draw(schedule, 1)
        for name, count in schedule.counts.items():
            assert abs(count * sum(weights) - drawn * weights[int(name)]) < sum(weights)


@given(st.integers(0, 1000))
def test_any_twenty_sequences_hold_nine_five_four_two(phase):
    drawn = draw(Schedule(WEIGHTS, phase), 100)
    for start in range(80):
        assert [drawn[start : start + 20].count(name) for name in WEIGHTS] == [9, 5, 4, 2]


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    workers=st.integers(1, 64),
    batch_size=st.integers(1, 16),
    steps=st.integers(1, 4),
    dropped=st.booleans(),
)
def test_batches_of_all_workers_together_are_in_proportion(weights, workers, batch_size, steps, dropped):
    names = {str(i): weight for i, weight in enumerate(weights)}
    schedules = [Schedule({**names, "gone": 7} if dropped else names, i * batch_size) for i in range(workers)]
    for schedule in schedules if dropped else []:
        draw(schedule, 5)
        schedule.drop("gone")
    for _ in range(steps):
        drawn = [name for schedule in schedules for name in draw(schedule, batch_size)]
        for name, weight in names.items():
            assert abs(drawn.count(name) - len(drawn) * weight / sum(weights)) < 2


@given(st.integers(0, 60))
def test_a_dropped_source_leaves_its_share_to_the_others_in_proportion(sequences):
    schedule = Schedule(WEIGHTS)
    draw(schedule, sequences)
    schedule.drop("finepdfs")
    drawn = draw(schedule, 110)
    assert [drawn.count(name) for name in WEIGHTS] == [0, 50, 40, 20]


@given(st.integers(0, 100), st.booleans())
def test_a_schedule_resumes_from_its_state(sequences, dropped):
    schedule = Schedule(WEIGHTS, phase=7)
    draw(schedule, sequences)
    if dropped:
        schedule.drop("c4")
    again = Schedule(WEIGHTS)
    again.load_state_dict(through_checkpoint(schedule.state_dict()))
    assert draw(again, 50) == draw(schedule, 50)
