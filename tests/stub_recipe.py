"""A recipe in a file of its own that trains nothing: what run_study needs of a recipe, without its seconds of imports.

It fails with `--fail error` or `--fail crash`, and with `--sleep` it waits as training does: SIGTERM ends it with 75.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--model_name_or_path", default="base")
    parser.add_argument("--score", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--sleep", type=float, default=0)
    parser.add_argument("--fail", choices=["error", "crash", "silent", "no"], default="no")
    parser.add_argument("--print_config", action="store_true")
    args = parser.parse_args(argv)
    config = {name: value for name, value in vars(args).items() if name != "print_config"}
    config["output_dir"] = str(args.output_dir)
    if args.print_config:
        print(json.dumps(config))  # JSON is YAML
        sys.exit(0)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with (args.output_dir / "starts").open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    signal.signal(signal.SIGTERM, lambda *_: stop(args.output_dir))
    (args.output_dir / "ready").touch()
    end = time.monotonic() + args.sleep
    while time.monotonic() < end and not (args.output_dir / "saved").exists():
        time.sleep(0.05)
    if args.fail == "error":
        print("stub_recipe.py: error: no such column", file=sys.stderr)
        sys.exit(2)
    if args.fail == "crash":
        raise RuntimeError("index out of bounds")
    if args.rows:  # results that can be compared
        from finished import write_classifier

        path = write_classifier(args.output_dir, args.score, args.seed, args.rows) / "results.json"
        results = json.loads(path.read_text())
        results["run"]["config"] = config
        path.write_text(json.dumps(results))
    elif args.fail == "no":
        score = {"value": args.score, "ci95": [args.score - 0.1, args.score + 0.1], "n": 10}
        run = {"config": config, "validation": {"accuracy": 0.5}, "seconds": {"total": 7.0}, "seed": args.seed}
        (args.output_dir / "results.json").write_text(json.dumps({"metrics": {"accuracy": score}, "run": run}))


def stop(folder):
    time.sleep(0.3)  # a save takes time
    (folder / "saved").touch()
    print("stub_recipe.py: stopped: SIGTERM at step 3 of 9", file=sys.stderr, flush=True)
    os._exit(75)


if __name__ == "__main__":
    main()
