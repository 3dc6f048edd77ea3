"""Creates a recognizer from an engine's URL: imports the library and loads the model. For worker processes."""

from __future__ import annotations

from .engines import EngineUrl
from .recognizer import Recognizer


def make_recognizer(engine: EngineUrl, *, language: str, workers: int) -> Recognizer:
    """Import the engine's library and load its model. Blocks for seconds, so only for worker processes.

    :param language: a BCP 47 tag; '' for the engine's default
    :param workers: processes of this kind on this machine, which share its CPUs
    :raises EngineFailed: the model or its library cannot be used; ``str()`` is one line
    """
    if engine.kind == "whisper":
        from .whisper import WhisperRecognizer

        return WhisperRecognizer(engine, language=language, workers=workers)
    if engine.kind == "google":
        from .google import GoogleRecognizer

        return GoogleRecognizer(engine, language=language)
    from .pocketsphinx import PocketsphinxRecognizer

    return PocketsphinxRecognizer(engine, language=language)
