"""The exit codes of both programs."""

from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


MEANINGS: dict[Exit, str] = {
    Exit.DONE: "done. Of `fedcoord run watch`: the run has completed. Of `fedcoord serve` and `fedagent run`: somebody asked it to stop",
    Exit.FAILED: "not done; the last line on standard error says why, and of `fedcoord` the code of the error. "
    "Of `fedcoord run watch`: the run has ended, and not completed. Of `fedagent check`: something is wrong. "
    "Of `fedagent status --exit-code`: the agent does not run, or hangs",
    Exit.USAGE: "the command line is not understood: no such command, option, file or value; standard error says which",
    Exit.INTERRUPTED: "Ctrl-C. What was asked for at the coordinator goes on",
}
