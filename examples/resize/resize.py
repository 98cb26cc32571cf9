"""Makes a thumbnail: a picture in base64 comes in, a smaller PNG in base64 goes out."""
import base64
import io
import json
import sys

from PIL import Image

params = json.load(sys.stdin)
picture = Image.open(io.BytesIO(base64.b64decode(params["image"])))
picture.thumbnail((params.get("width", 64), params.get("height", 64)))
out = io.BytesIO()
picture.save(out, "PNG")
print(base64.b64encode(out.getvalue()).decode())
