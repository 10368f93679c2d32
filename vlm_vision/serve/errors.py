"""Error of a request that gets no actions."""


class RequestError(Exception):
    """One sentence for the client, and the HTTP status that goes with it.

    400 for what can be mended in the request, 401 and 403 for who asks, 413 and 429 for too much of it, 500 for a policy or
    a reading that failed, 503 for a server that is stopping.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(" ".join(sentence.split()))
        self.status = status
