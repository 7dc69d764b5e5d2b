//! REST, WebSocket, SQL over HTTP, the PostgreSQL protocol, metrics.
