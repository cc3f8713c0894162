"""Stand-in for torch on a host with GPUs: the few calls of torch.cuda that a build makes."""

import os


class cuda:
    @staticmethod
    def device_count() -> int:
        return int(os.environ.get("TRTBUILD_FAKE_GPUS", "2"))

    @staticmethod
    def set_device(number: int) -> None:
        if not cuda.device_count():
            raise RuntimeError("No CUDA GPUs are available")
        if number >= cuda.device_count():
            raise RuntimeError("CUDA error: invalid device ordinal")

    @staticmethod
    def get_device_capability(number: int = 0) -> tuple[int, int]:
        major, minor = os.environ.get("TRTBUILD_FAKE_SM", "9.0").split(".")
        return int(major), int(minor)

    @staticmethod
    def get_device_name(number: int = 0) -> str:
        return "Stand-in GPU"

    @staticmethod
    def empty_cache() -> None:
        pass
