"""Tells an unreachable network from missing data."""

import re

_NAMES = re.compile(
    r"ConnectionError|ConnectError|ConnectTimeout|ReadTimeout|PoolTimeout|^Timeout$|ProxyError|ReadError"
    r"|MaxRetryError|ClientConnector|ClientConnection|ServerDisconnected|EndpointConnection"
    r"|OfflineModeIsEnabled|LocalEntryNotFound|gaierror|^TimeoutError$|RemoteProtocolError"
)
_TEXTS = re.compile(
    r"NETWORK_CONNECTION|[Cc]ould ?n[o']t (resolve|connect)|Name or service not known|Connection refused"
    r"|No route to host|Network is unreachable|Temporary failure in name resolution|offline mode is enabled"
    r"|\b50[0234] Server Error|Too Many Requests"
)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error of a storage or hub client says that no server answered.

    Clients raise kinds of their own, often one inside another, so kinds are compared by name.
    """
    seen = 0
    while error is not None and seen < 10:
        if any(_NAMES.search(kind.__name__) for kind in type(error).__mro__) or _TEXTS.search(str(error)):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
