"""The system calls that a sandboxed process is refused, as a classic BPF program for bubblewrap's `--seccomp`.

A deny list: torch and CUDA need a wide and changing set of calls, and the namespaces are the wall; this takes away what attacks the
kernel or another process of the sandbox (see seccomp(2), and the default profile of container runtimes for the same choice).
"""

import errno
import platform
import struct

from sensorium_pipeline.errors import IsolationError

LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GREATER_OR_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000 | errno.EPERM
ABSENT = 0x00050000 | errno.ENOSYS

# Offsets within struct seccomp_data (little-endian machines alone).
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16

# New mount, cgroup, uts, ipc, user, pid and network namespaces.
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# The only address families: unix, IPv4 and IPv6 (of the sandbox's own empty network). Vsock above all is in no network namespace.
FAMILIES = (1, 2, 10)

# name: (x86_64, aarch64)
CALLS: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # file systems and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # wide interfaces into the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "syslog": (103, 116),
    "acct": (163, 89),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    # the machine
    "personality": (135, 92),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
}
# Memory that no process needs to map, so that only a control group counts it.
UNCOUNTED: dict[str, tuple[int, int]] = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
# Answered as if the kernel had no such call, so that libraries fall back: clone3 hides its flags from a filter behind a pointer.
MISSING: dict[str, tuple[int, int]] = {
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
CLONE = (56, 220)
SOCKETS = ((41, 198), (53, 199))  # socket and socketpair
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
X32_BIT = 0x40000000


def filter_program(*, uncounted_memory: bool = True) -> bytes:
    """The filter for this machine's architecture, as an array of struct sock_filter.

    Args:
        uncounted_memory: whether memory that no process maps may be made; without a control group nothing would cap it.

    Raises:
        IsolationError: the architecture is neither x86_64 nor aarch64.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise IsolationError("no system call filter for this processor", where=machine, advice="Evaluate on x86_64 or aarch64")
    column, architecture = ARCHITECTURES[machine]
    program = [
        _instruction(LOAD_WORD, ARCHITECTURE),
        _instruction(JUMP_EQUAL, architecture, 1, 0),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD_WORD, NUMBER),
    ]
    if machine == "x86_64":
        # The same calls under other numbers (x32) would pass by the table below.
        program += [_instruction(JUMP_GREATER_OR_EQUAL, X32_BIT, 0, 1), _instruction(RETURN, KILL_PROCESS)]
    absent = MISSING if uncounted_memory else MISSING | UNCOUNTED
    for table, answer in ((CALLS, REFUSE), (absent, ABSENT)):
        for numbers in table.values():
            number = numbers[column]
            if number is not None:
                program += [_instruction(JUMP_EQUAL, number, 0, 1), _instruction(RETURN, answer)]
    program += [
        _instruction(JUMP_EQUAL, CLONE[column], 0, 4),
        _instruction(LOAD_WORD, FIRST_ARGUMENT),
        _instruction(JUMP_ANY_BIT, NAMESPACES, 0, 1),
        _instruction(RETURN, REFUSE),
        _instruction(RETURN, ALLOW),
    ]
    for numbers in SOCKETS:
        program += [_instruction(JUMP_EQUAL, numbers[column], 0, len(FAMILIES) + 3), _instruction(LOAD_WORD, FIRST_ARGUMENT)]
        program += [_instruction(JUMP_EQUAL, family, len(FAMILIES) - index, 0) for index, family in enumerate(FAMILIES)]
        program += [_instruction(RETURN, REFUSE), _instruction(RETURN, ALLOW)]
    program += [_instruction(RETURN, ALLOW)]
    return b"".join(program)


def _instruction(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, when_true, when_false, value)
