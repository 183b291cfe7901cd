# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of all modules shares."""

from __future__ import annotations


class ModuleDocFragment:
    """The program, and what it needs."""

    DOCUMENTATION = r"""
options:
  executable:
    description:
      - The C(dmcopy) program, where it is not found by E(PATH), nor in C(/usr/local/sbin),
        C(/usr/local/bin), C(/usr/sbin) or C(/opt/dmcopy/bin).
    type: path
requirements:
  - dmcopy on the managed host (role P(dmcopy.dmcopy.agent#role)).
notes:
  - Needs root.
  - The directories of dmcopy are those of the host; E(DMCOPY_STATE_DIR), E(DMCOPY_RUN_DIR) and
    E(DMCOPY_CONFIG_DIR) can be given with the keyword C(environment).
attributes:
  check_mode:
    support: full
    description: Can run in check_mode and return changed status prediction without modifying target.
  platform:
    platforms: linux
    support: full
    description: Target OS this module works on.
"""
