"""python3 -S start.py FILE:NAME, or python3 -S start.py --hold LIBRARY

All that there is lies in modules, whose bytecode is kept beside them: what is started itself is compiled each time.
"""

import _faena

_faena.main()
