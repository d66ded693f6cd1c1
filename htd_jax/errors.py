"""The one exception for everything that a user can cause and fix."""
import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Bad input: a file, key, shape or value that cannot be used.

    The message is one line that names the thing, echoes its value and says what to do.
    Commands print it and exit with status 2.
    """


def one_line(error: BaseException, length: int = 200) -> str:
    """The start of an error's message, without line breaks."""
    return " ".join(str(error).split())[:length]


@contextlib.contextmanager
def writing_to(what: str) -> Iterator[None]:
    """Turns an OSError within into a UserError: `what` cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {what}: {error.strerror}") from error
