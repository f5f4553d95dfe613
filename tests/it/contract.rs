//! Every HTTP adapter against scripted servers: what the wire can do to us.
