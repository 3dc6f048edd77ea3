"""The probe: checks a live deployment of the contract from outside, as a device would see it.

``cocoa probe-device`` is its command line. It knows the contract and nothing of the gateway's code, so it works against
any implementation, through any proxy. The parts, each of which imports only what stands above it::

    verdicts     what a check comes to; a check that was run
    target       where the deployment is
    wire         HTTP/1.1: a request's bytes, a response's parsing, one exchange
    judge        is this response, this message what the contract says? (pure)
    between      which answers are a proxy's, and what is to be done about them (pure)
    credentials  tokens: given, minted, forged
    device       one WebSocket connection, as a device holds it
    recording    a WAV file, cut into what a microphone would have delivered by when
    judge_speech is what came of a recording what the contract says? (pure)
    speaking     a recording on its way to the gateway, and all that comes back meanwhile
    delivery     how a record is published, so that it can be seen to arrive
    session      what the checks of one run share
    checks_*     the checks
    run          their order, their time limits
    report       text, JSON and JUnit
"""
