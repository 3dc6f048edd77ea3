"""Keys: verifying and signing tokens.

``keys`` verifies and signs. ``jwks`` keeps key sets fresh and has the interface for the web layer (``KeyStore``).
``devkey`` creates the development key, and ``minting`` creates tokens. The rules for the claims of a token are in
``cocoa_tornado.rules.identity``.
"""
