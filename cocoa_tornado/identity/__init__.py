"""Keys: which tokens are genuine, and how new ones are signed.

``keys`` verifies and signs, ``jwks`` keeps sets of keys fresh and is what the web layer talks to (``KeyStore``),
``devkey`` makes the development key, ``minting`` makes tokens. What a genuine token must say is a rule and lives in
``cocoa_tornado.rules.identity``.
"""
