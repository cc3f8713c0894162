"""Lines as the real one writes them."""

import time


class Logger:
    level = "info"

    def set_level(self, level: str) -> None:
        self.level = level

    def say(self, letter: str, text: str, who: str = "TRT-LLM") -> None:
        print(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{who}] [{letter}] {text}", flush=True)

    def info(self, text: str) -> None:
        self.say("I", text)

    def warning(self, text: str) -> None:
        self.say("W", text)

    def error(self, text: str) -> None:
        self.say("E", text)


logger = Logger()
severity_map = dict.fromkeys(("internal_error", "error", "warning", "info", "verbose", "debug", "trace"))
