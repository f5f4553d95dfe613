//! What each metric means, in a sentence, for readers of a report. The long
//! form, with what other tools do, is `docs/METRICS.md`.

/// Term and meaning, in the order of reading.
pub const DEFINITIONS: [(&str, &str); 15] = [
    (
        "TTFT",
        "time to first token: from the first byte sent to the first event with generated text, \
         content or reasoning. A first chunk that only names the role is no token.",
    ),
    (
        "TPOT",
        "time per output token after the first, per request: (last token − first token) / (output \
         tokens − 1). It leaves TTFT out; some tools include it under the same name.",
    ),
    (
        "ITL",
        "inter-token latency: gaps between consecutive events with text, pooled over requests. \
         Where a chunk carries several tokens it is a gap between chunks. Gaps of one request \
         resemble each other, so its interval is narrower than it should be.",
    ),
    ("E2EL", "end-to-end latency: from the first byte sent to the end of the response."),
    ("decode tok/s", "1 / TPOT: how fast one stream writes once it has begun."),
    (
        "output tok/s",
        "output tokens of the completed requests over the whole case, first send to last token: \
         waiting, ramp and drain included.",
    ),
    (
        "steady tok/s",
        "output tokens over the part of the case in which all streams were generating at once; \
         absent where there is no such part.",
    ),
    ("C", "requests in flight at once."),
    (
        "p50 with its interval",
        "median by linear interpolation; the interval is made of order statistics, covers the true \
         median with at least 95 % whatever the distribution, and needs 6 values.",
    ),
    (
        "p90, p99",
        "given only where such an interval exists: from 29 values for p90, 299 for p99. Below that \
         a tail percentile of a sample says little more than its maximum.",
    ),
    (
        "ok",
        "completed requests of those sent. Latencies are over completed ones, failures are counted \
         by class. Warm-up requests are in no number.",
    ),
    (
        "cold",
        "TTFT of the first request that met the engine without loaded weights. Loading is part of \
         it; the time to make the engine cold is not.",
    ),
    (
        "from the intended instant",
        "TTFT and E2EL counted from when a request was to be sent, whether or not the client was \
         late: what a user who arrives then would wait.",
    ),
    (
        "kept up",
        "completions were at least 95 % of arrivals, ramp and drain left out. Goodput counts only \
         requests that met every objective, and failed ones meet none.",
    ),
    (
        "sent within",
        "last minus first send of a burst that was released together: how simultaneous it was.",
    ),
];
