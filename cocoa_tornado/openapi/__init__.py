"""The OpenAPI document of the whole HTTP surface: ``GET /api/v1/openapi.json``."""
