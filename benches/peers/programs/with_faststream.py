"""FastStream, with its command line's supervisor, and without a broker: none has to be connected to."""

from faststream import FastStream

from begin import begin


class Application(FastStream):
    async def _start_broker(self):
        pass


app = Application(on_startup=[begin])
