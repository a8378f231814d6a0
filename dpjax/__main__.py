"""The command `dpjax`, and `python -m dpjax`: the same as dpjax.main."""

import runpy


def main() -> None:
  """Runs dpjax.main as the program, whose worker processes may import it."""
  runpy.run_module('dpjax.main', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
