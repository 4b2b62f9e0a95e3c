"""The class that `seldon-core-microservice serving.seldon.v1.ChatModel` serves (Seldon Core v1, protocol `seldon`).

A chat request in OpenAI's shape is the message's `jsonData`, and so is the answer. `meta.tags.answer_id` says that a
gateway of hone sent it. Its environment has seldon-core 1.17.1 and nothing of hone's.
"""

import os
from typing import Any

from serving.seldon.arm import ArmFailed, ArmRuntime

Message = dict[str, Any]


class ChatModel:
    """One version. `version` and `directory` are parameters of the predictor's graph."""

    def __init__(self, version: str, directory: str) -> None:
        self.arm = ArmRuntime(version, directory, os.environ["ARM_PYTHON"])
        self.arm.end_with_it()

    def predict_raw(self, message: Message) -> Message:
        """Return the arm's answer, with its version and the digest of its weights in `meta.tags`."""
        keyed = bool(message.get("meta", {}).get("tags", {}).get("answer_id"))
        request = message.get("jsonData")
        if not isinstance(request, dict):
            return refusal(400, "jsonData is no object: send a chat request in OpenAI's shape")
        try:
            answer = self.arm.chat(request)
        except ArmFailed as error:
            return refusal(error.status, error.message)
        tags = {"model_version": self.arm.version, "digest": self.arm.digest}
        return {"jsonData": answer, "meta": {"tags": tags, "metrics": [count(self.arm.version, keyed)]}}

    def health_status(self) -> str:
        """Return `ready`; anything else is an error of the health route."""
        if not self.arm.is_ready():
            raise RuntimeError(f"the runtime of {self.arm.version} does not answer")
        return "ready"


def count(version: str, keyed: bool) -> Message:
    """Return the custom metric of one request."""
    tags = {"version": version, "keyed": "true" if keyed else "false"}
    return {"type": "COUNTER", "key": "hone_arm_requests_total", "value": 1, "tags": tags}


def refusal(code: int, info: str) -> Message:
    """Return what the wrapper answers with this HTTP status."""
    return {"status": {"code": code, "info": info, "reason": "REFUSED", "status": "FAILURE"}}
