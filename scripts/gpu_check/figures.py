"""What was measured: a line a figure in a file, as soon as it is there, and a table at the end."""

import json
import time


class Figures:
    """`passed` turns false when a figure was out of its bounds or a proof ended early."""

    def __init__(self, path):
        self.path, self.kept, self.passed, self.started = path, [], True, time.monotonic()
        path.write_text("")

    def add(self, proof, name, value, unit="", least=None, most=None):
        """One figure. `least`, `most`: bounds that it must keep."""
        kept = (least is None or value >= least) and (most is None or value <= most)
        self.passed &= kept
        bounds = " and ".join(f"{sign} {bound:g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None)
        self._write({"proof": proof, "name": name, "value": value, "unit": unit, "bounds": bounds, "kept": kept})

    def say(self, proof, name, text):
        """Something seen that is no number."""
        self._write({"proof": proof, "name": name, "value": text, "unit": "", "bounds": "", "kept": True})

    def fail(self, proof, text):
        self.passed = False
        self._write({"proof": proof, "name": "ended early", "value": text, "unit": "", "bounds": "", "kept": False})

    def _write(self, figure):
        if isinstance(figure["value"], str):
            figure["value"] = " ".join(figure["value"].split())
        figure["at_s"] = round(time.monotonic() - self.started, 1)
        self.kept.append(figure)
        with open(self.path, "a") as file:
            file.write(json.dumps(figure, ensure_ascii=False) + "\n")
        print(self._line(figure), flush=True)

    def _line(self, figure):
        value = figure["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        verdict = "" if not figure["bounds"] else f"{figure['bounds']}: {'yes' if figure['kept'] else '**no**'}"
        return f"| {figure['proof']} | {figure['name']} | {shown} {figure['unit']} | {verdict} |"

    def table(self):
        return "\n".join(["| proof | figure | value | wanted |", "|---|---|---|---|", *map(self._line, self.kept)])
