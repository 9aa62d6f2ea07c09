"""An error answer in the server's words."""


class Refusal(Exception):
    """The call is refused with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def crash() -> Refusal:
    """Give what the server answers when it stumbles."""
    return Refusal(500, "An unexpected error occurred on the server!")
