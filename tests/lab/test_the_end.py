"""What the last lab leaves behind: nothing. It is the lab that other modules use, so this one comes last."""

from tests.lab.machine import Machine, left_over_since
from tests.lab.program import TestLab


def test_destroy_of_the_last_lab_leaves_the_machine_as_before(
    layer1: TestLab, machine_before: Machine
) -> None:
    layer1.run("destroy", "--yes")
    program = layer1.program
    assert not left_over_since(machine_before, program.state)
    assert not program.state.exists()
