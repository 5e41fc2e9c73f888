"""Proof 3: the trainer's operations, its decoder, a step of SFT and a step of GRPO, on the GPU beside the kernels of the CPU.

The bounds are in the tests themselves (`crates/trainer/src/model/device_tests.rs`); here their figures are read off.
"""

import subprocess

PROOF = 3


def run(setting, figures):
    tests = setting.programs / "trainer_tests"
    if not tests.is_file():
        figures.say(PROOF, "the trainer's tests", "not built yet")
        return
    for filters in (["on_the_device"], ["speed_on_the_device", "--ignored"]):
        command = [tests, "--nocapture", "--test-threads", "1", *filters]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=max(1, setting.left()))
        for line in done.stdout.splitlines():
            parts = line.split("test result")[0].split(" | ")
            if len(parts) == 3:
                kind, name, value = parts
                figures.add(PROOF, f"{kind.split()[-1]}: {name}", float(value))
        if done.returncode != 0:
            raise RuntimeError(f"{filters[0]}: {done.stdout[-800:]} {done.stderr[-800:]}")
        [counted] = [line for line in done.stdout.splitlines() if line.startswith("test result")]
        figures.say(PROOF, filters[0], counted)
