"""Conversations whose prompts are compared with those of the models' own chat templates, as the OpenAI API has them."""

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a city: 天气, \"now\"",
    "parameters": {"type": "object", "required": ["city"],
                   "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}


def _calls(*calls):
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": str(number), "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)]}


SYSTEM = {"role": "system", "content": "Be brief.\n简短。"}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
CALLED = [*ASKED, _calls(("get_weather", '{"city": "Paris"}')),
          {"role": "tool", "tool_call_id": "0", "content": '{"sky": "clear"}\n'}]

# name: (messages, tools)
CASES = {
    "one question": (ASKED, []),
    "system": ([SYSTEM, *ASKED], []),
    "several turns": ([SYSTEM, *ASKED, {"role": "assistant", "content": "Sunny.\n\n晴。"},
                       {"role": "user", "content": " And\ntomorrow? <|user|>"}], []),
    "thoughts": ([*ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny. "},
                  {"role": "user", "content": "And tomorrow?"}], []),
    "two questions": ([*ASKED, {"role": "user", "content": "Now."}], []),
    "tools": (ASKED, [WEATHER, CLOCK]),
    "tools and system": ([SYSTEM, *ASKED], [WEATHER]),
    "a call and its result": (CALLED, [WEATHER]),
    "after a result": ([SYSTEM, *CALLED, {"role": "assistant", "content": "Clear."},
                        {"role": "user", "content": "Thanks."}], [WEATHER, CLOCK]),
    "words, two calls": ([*ASKED, {**_calls(("get_weather", '{"city": "Paris"}'), ("clock", "{}")),
                                   "content": "Let me see."},
                          {"role": "tool", "tool_call_id": "0", "content": "clear"},
                          {"role": "tool", "tool_call_id": "1", "content": "12:00"}], [WEATHER, CLOCK]),
}
