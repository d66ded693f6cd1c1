"""The one exception for everything that a user can cause and fix."""
import contextlib
import re
from collections.abc import Iterator

_NAME, _LINE = 200, 3000  # characters shown of a name or a value, and of a whole message
# What is in quotes, which may have blanks, or a word. An apostrophe follows a letter.
_LONG_NAME = re.compile(rf"""(?<!\w)(['"])(?:\\.|(?!\1)[^\\]){{{_NAME},}}\1|\S{{{_NAME + 1},}}""")


class UserError(Exception):
    """Bad input: a file, key, shape or value that cannot be used.

    The message is one line that names the thing, echoes its value and says what to do. A long name is shortened in its
    middle. Commands print it and exit with status 2.
    """

    def __init__(self, message: str):
        super().__init__(shortened(message))


def shortened(message: str) -> str:
    """The message, where a name or all of it is very long with dots in place of the middle."""
    return _middle_out(_LONG_NAME.sub(lambda name: _middle_out(name[0], _NAME), message), _LINE)


def _middle_out(text, length):
    return text if len(text) <= length else f"{text[:length // 2]}...{text[-length // 2:]}"


def one_line(error: BaseException, length: int = 200) -> str:
    """The start of an error's message, without line breaks."""
    return " ".join(str(error).split())[:length]


def reason_of(error: OSError) -> str:
    """Why, in a few words: those of the system where it has some."""
    return error.strerror or one_line(error)


@contextlib.contextmanager
def writing_to(what: str) -> Iterator[None]:
    """Turns an OSError within into a UserError: `what` cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {what}: {reason_of(error)}") from error
