"""`/swagger.json`: the user's own file, or what is known of the script."""

import json
import os

VERSIONS = ("2", "3", "3.1")


def document(version, root, schemas):
    """The document of that version as bytes; None: there is no such version."""
    if version not in VERSIONS:
        return None
    own = os.path.join(root, f"swagger{version}.json")
    if os.path.isfile(own):
        with open(own, "rb") as file:
            return file.read()
    given, found = schemas or ({"type": "object"}, {"type": "object"})
    build = _two if version == "2" else _three
    return json.dumps(build(version, given, found)).encode()


_INFO = {"title": "ML service", "description": "API of a scoring script", "version": "1.0"}


def _two(_version, given, found):
    body = {
        "name": "serviceInputPayload",
        "in": "body",
        "required": True,
        "schema": {"$ref": "#/definitions/ServiceInput"},
    }
    return {
        "swagger": "2.0",
        "info": _INFO,
        "schemes": ["http"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": {
            "/": {
                "get": {"operationId": "ServiceHealthCheck", "responses": {"200": {"description": "Healthy"}}}
            },
            "/score": {
                "post": {
                    "operationId": "RunMLService",
                    "parameters": [body],
                    "responses": {
                        "200": {
                            "description": "The result",
                            "schema": {"$ref": "#/definitions/ServiceOutput"},
                        }
                    },
                }
            },
        },
        "definitions": {"ServiceInput": given, "ServiceOutput": found},
    }


def _three(version, given, found):
    def content(name):
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    return {
        "openapi": "3.1.0" if version == "3.1" else "3.0.3",
        "info": _INFO,
        "paths": {
            "/": {
                "get": {"operationId": "ServiceHealthCheck", "responses": {"200": {"description": "Healthy"}}}
            },
            "/score": {
                "post": {
                    "operationId": "RunMLService",
                    "requestBody": {"required": True, "content": content("ServiceInput")},
                    "responses": {"200": {"description": "The result", "content": content("ServiceOutput")}},
                }
            },
        },
        "components": {"schemas": {"ServiceInput": given, "ServiceOutput": found}},
    }
