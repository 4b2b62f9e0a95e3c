"""The runtime that MLServer loads (`implementation` of model-settings.json): Seldon Core v2, Open Inference Protocol.

One BYTES tensor `chat_request` holds a chat request in OpenAI's shape as JSON; `chat_response` the answer. The
parameter `answer_id` says that a gateway of hone sent it. Its environment has mlserver 1.7 and nothing of hone's.
"""

import asyncio
import json
import os
from typing import Any

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import StringCodec  # type: ignore[import-not-found]
from mlserver.errors import InferenceError, MLServerError  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse, Parameters  # type: ignore[import-not-found]

from serving.seldon.arm import ArmFailed, ArmRuntime
from serving.seldon.arm_requests import arm_requests

REQUEST, RESPONSE = "chat_request", "chat_response"


class ChatModel(MLModel):  # type: ignore[misc]
    """One version: `parameters.uri` is its folder, `parameters.extra.version` its name in hone."""

    arm: ArmRuntime

    async def load(self) -> bool:
        """Start the arm's runtime; true once it answers."""
        parameters = self.settings.parameters
        version = str((parameters.extra or {}).get("version") or self.name)
        directory = os.path.abspath(str(parameters.uri))
        self.arm = await asyncio.to_thread(ArmRuntime, version, directory, os.environ["ARM_PYTHON"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the arm's answer, with its version and the digest of its weights as parameters."""
        sent = payload.parameters.model_dump() if payload.parameters else {}
        arm_requests().labels(self.arm.version, "true" if sent.get("answer_id") else "false").inc()
        try:
            answer = await asyncio.to_thread(self.arm.chat, chat_request(payload))
        except ArmFailed as error:
            raise MLServerError(error.message, status_code=error.status) from None
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            parameters=Parameters(version=self.arm.version, digest=self.arm.digest),
            outputs=[StringCodec.encode_output(RESPONSE, [json.dumps(answer)])],
        )

    async def unload(self) -> bool:
        """End the arm's runtime."""
        await asyncio.to_thread(self.arm.stop)
        return True


def chat_request(payload: InferenceRequest) -> dict[str, Any]:
    """Return the chat request in a payload.

    Raises:
        InferenceError: it holds none.
    """
    try:
        (tensor,) = (one for one in payload.inputs if one.name == REQUEST)
        (text,) = StringCodec.decode_input(tensor)
        document = json.loads(text)
    except ValueError as error:
        raise InferenceError(f"send one BYTES tensor {REQUEST} with one chat request as JSON ({error})") from None
    if not isinstance(document, dict):
        raise InferenceError(f"{REQUEST} is no object: send a chat request in OpenAI's shape")
    return document
