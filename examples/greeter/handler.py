GREETINGS = {"en": "Hello", "es": "Hola", "eu": "Kaixo"}


def handle(params, context):
    greeting = GREETINGS.get(params.get("language", "en"), "Hello")
    return f"{greeting}, {params['name']}!"
