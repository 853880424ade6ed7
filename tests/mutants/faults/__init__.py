"""The faults: what a hurried change could do wrong, in each room, and the tests that have to notice."""

from tests.mutants.faults import commands, data, evaluation, grpo, model, training
from tests.mutants.faults.fault import Fault

FAULTS: list[Fault] = [fault for room in (data, model, training, grpo, evaluation, commands) for fault in room.FAULTS]
