"""Throws dice: {"roll": "4d6"} becomes [4, 6, 4, 3]."""
import json
import random

with open("input.json") as file:
    count, sides = json.load(file)["roll"].split("d")
with open("output.json", "w") as file:
    json.dump({"output": [random.randint(1, int(sides)) for _ in range(int(count))]}, file)
