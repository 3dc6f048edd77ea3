"""The probe: tests a live deployment of the contract from outside, as a device.

``cocoa probe-device`` is its command line. It depends on the contract only, not on the gateway's code, so it works with
any implementation and through any proxy. Each of its modules imports only modules listed above it::

    verdicts     the result of a check, and of a run
    target       the address of the deployment
    wire         HTTP/1.1: building requests, parsing responses, one exchange
    judge        compares responses and messages with the contract (pure)
    between      recognizes the responses of proxies, and gives advice (pure)
    credentials  tokens: given, minted, forged
    device       one WebSocket connection of a device
    recording    a WAV file, split into pieces like those of a microphone
    judge_speech compares the results of a recording with the contract (pure)
    speaking     streams a recording, and collects the messages meanwhile
    delivery     publishes records
    session      the shared state of the checks of a run
    checks_*     the checks
    run          the order and the time limits of the checks
    report       text, JSON and JUnit
"""
