"""The exceptions that end a run, or `ptft`, in one line instead of a traceback, and their exit codes."""

import difflib
import os
import sys


class InputError(ValueError):
    """A mistake in the data, the arguments or the environment that the user can mend.

    The message says what was found, where (file and line, row or column), and what to do next. Recipes show it without
    a traceback; see `ptft_recipes.cli.run_command`.
    """


class ResourceError(Exception):
    """Memory or disk space ran out; what is saved is intact, and the message says what helps."""


class PushError(Exception):
    """The run is finished and saved, and its upload failed; the message has the command that tries again."""


class LostProcessError(Exception):
    """Another process of the run has ended, or its machine cannot be reached."""


class StoppedBySignal(Exception):  # noqa: N818 - an order, not an error
    """SIGTERM or Ctrl-C ended the training after a checkpoint was saved; the same command goes on."""


# Of what ends in one line that begins with the word. 0 is a finished run, 1 anything else, with its traceback.
EXIT_CODES = {
    InputError: (2, "error"),
    FloatingPointError: (3, "diverged"),
    ResourceError: (4, "error"),
    PushError: (5, "error"),
    LostProcessError: (6, "lost"),
    StoppedBySignal: (75, "stopped"),  # EX_TEMPFAIL of sysexits.h: try again
    KeyboardInterrupt: (130, "interrupted"),  # as a shell has it: 128 + SIGINT
}


def tell_why(error: BaseException, program: str) -> int:
    """Print the one line in which a program ends, and return its exit code.

    Args:
        error: Of one of the kinds in `EXIT_CODES`.
        program: Its name.
    """
    code, word = next(meaning for kind, meaning in EXIT_CODES.items() if isinstance(error, kind))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        program += f", rank {os.environ.get('RANK')}"
    # One write: the lines of several processes must not mix.
    sys.stderr.write(f"{program}: {word}: {error}".removesuffix(": ") + "\n")
    return code


def one_line(text, limit: int = 300) -> str:
    r"""Return what another library or a file says as one line of printable characters, cut to a length.

    Args:
        text: An exception, or anything else that can be turned into text.
        limit: Characters.

    >>> one_line("Invalid data\n\x1b[2J  at 0")
    'Invalid data [2J at 0'
    >>> one_line("x" * 10, limit=4)
    'xxxx…'
    """
    line = "".join(character if character.isprintable() else " " for character in str(text)[: 4 * limit])
    line = " ".join(line.split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def nearest(name: str, known) -> str:
    """Return a hint such as ``; did you mean 'learning_rate'?``, or an empty string when nothing is near.

    Args:
        name: What was given.
        known: The names that exist.

    >>> nearest("learning_rte", ["learning_rate", "seed"])
    "; did you mean 'learning_rate'?"
    >>> nearest("xyz", ["learning_rate"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""
