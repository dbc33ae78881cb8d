"""The exceptions that end a run in one line instead of a traceback. Exit codes: `ptft_recipes.cli.EXIT_CODES`."""

import difflib


class InputError(ValueError):
    """A mistake in the data, the arguments or the environment that the user can mend.

    The message says what was found, where (file and line, row or column), and what to do next. Recipes show it without
    a traceback; see `ptft_recipes.cli.run_command`.
    """


class ResourceError(Exception):
    """Memory or disk space ran out; what is saved is intact, and the message says what helps."""


class PushError(Exception):
    """The run is finished and saved, and its upload failed; the message has the command that tries again."""


class StoppedBySignal(Exception):  # noqa: N818 - an order, not an error
    """SIGTERM or Ctrl-C ended the training after a checkpoint was saved; the same command goes on."""


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
