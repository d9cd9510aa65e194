package landlock

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Access is a set of file system access rights, LANDLOCK_ACCESS_FS_*
// (linux/landlock.h).
type Access uint64

// The rights, in the order of their bits, which is the order in which the
// kernel learned them.
const (
	Execute    Access = unix.LANDLOCK_ACCESS_FS_EXECUTE
	WriteFile  Access = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	ReadFile   Access = unix.LANDLOCK_ACCESS_FS_READ_FILE
	ReadDir    Access = unix.LANDLOCK_ACCESS_FS_READ_DIR
	RemoveDir  Access = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR
	RemoveFile Access = unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	MakeChar   Access = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR
	MakeDir    Access = unix.LANDLOCK_ACCESS_FS_MAKE_DIR
	MakeReg    Access = unix.LANDLOCK_ACCESS_FS_MAKE_REG
	MakeSock   Access = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
	MakeFifo   Access = unix.LANDLOCK_ACCESS_FS_MAKE_FIFO
	MakeBlock  Access = unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	MakeSym    Access = unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	Refer      Access = unix.LANDLOCK_ACCESS_FS_REFER
	Truncate   Access = unix.LANDLOCK_ACCESS_FS_TRUNCATE
	IoctlDev   Access = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	// ResolveUnix is to connect to a socket by its path (Linux 7.1), unless it was
	// made in the same domain: exec and the first program are of different ones.
	ResolveUnix Access = 1 << 16
)

var accessNames = []string{
	"execute", "write_file", "read_file", "read_dir", "remove_dir", "remove_file", "make_char", "make_dir",
	"make_reg", "make_sock", "make_fifo", "make_block", "make_sym", "refer", "truncate", "ioctl_dev", "resolve_unix",
}

// String names the class of a if it is one, with what a place may lack of it;
// else it lists a's rights as the kernel's audit records name them, "{}" for none.
func (a Access) String() string {
	for _, class := range []struct {
		name string
		all  Access
	}{{"read_only", ReadOnly}, {"read_write", ReadWrite}, {"device", Device}, {"terminals", Terminals}} {
		switch lacks := class.all &^ a; {
		case a&^class.all != 0 || lacks&^(Execute|ResolveUnix) != 0:
		case lacks == 0:
			return class.name
		default:
			return class.name + " without " + strings.Trim(lacks.Rights(), "{}")
		}
	}
	return a.Rights()
}

// Rights lists the rights one by one.
func (a Access) Rights() string {
	var names []string
	for bit := range 64 {
		switch {
		case a&(1<<bit) == 0:
		case bit < len(accessNames):
			names = append(names, accessNames[bit])
		default:
			names = append(names, fmt.Sprintf("1<<%d", bit))
		}
	}
	return "{" + strings.Join(names, ",") + "}"
}

// The classes of paths.
const (
	// ReadOnly is to look and to run, and not to change.
	ReadOnly = Execute | ReadFile | ReadDir
	// ReadWrite is everything but making device nodes, and ioctl on devices.
	// It holds Refer: without it rename and link between directories fail
	// (EXDEV), which npm, cargo and pip do all the time.
	ReadWrite = ReadOnly | WriteFile | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym | Refer | Truncate | ResolveUnix
	// Device is to use a device node. Without IoctlDev on ptmx openpty fails.
	Device = ReadFile | WriteFile | Truncate | IoctlDev
	// Terminals is a directory of device nodes that come and go: /dev/pts.
	Terminals = ReadDir | Device
	// forFiles are the rights that a rule on something that is not a
	// directory may hold; others make landlock_add_rule fail with EINVAL.
	forFiles = Execute | WriteFile | ReadFile | Truncate | IoctlDev
)

// OfFile returns what of a can be granted on a file that is not a directory.
func (a Access) OfFile() Access { return a & forFiles }

// abis tells what each ABI of Landlock can restrict: row i is ABI i
// (Documentation/userspace-api/landlock.rst, "Previous limitations").
var abis = []struct {
	kernel string
	adds   Access
}{
	{"", 0},
	{"5.13", Execute | WriteFile | ReadFile | ReadDir | RemoveDir | RemoveFile | MakeChar | MakeDir | MakeReg | MakeSock | MakeFifo | MakeBlock | MakeSym},
	{"5.19", Refer},
	{"6.2", Truncate},
	{"6.7", 0}, // TCP rules: the namespace and the gateway do that
	{"6.10", IoctlDev},
	{"6.12", 0}, // scopes of signals and abstract sockets
	{"6.15", 0}, // audit records
	{"7.0", 0},  // all threads at once
	{"7.1", ResolveUnix},
}

// MinABI is the least that is accepted unless the policy says best_effort:
// before ABI 3 a read-only file can be emptied with truncate(2).
const MinABI = 3

// Scopes keep a program to its own domain: it reaches its descendants, and
// neither strangers nor those of another exec. ScopeSignal is for sandboxes that
// share a pid namespace, ScopeAbstract, for connections to abstract unix
// sockets, for those that share a network namespace (LANDLOCK_SCOPE_SIGNAL and
// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, ABI 6).
const (
	ScopeAbstract = 1 << 0
	ScopeSignal   = 1 << 1
	ScopeABI      = 6
)

// Handled returns every right that the kernel's ABI can restrict; a newer ABI
// than the table knows restricts what the table knows.
func Handled(abi int) Access {
	var all Access
	for i, row := range abis {
		if i <= abi {
			all |= row.adds
		}
	}
	return all
}

// Kernel returns the first kernel version that has abi, or "" if the table
// does not know.
func Kernel(abi int) string {
	if abi < 1 || abi >= len(abis) {
		return ""
	}
	return abis[abi].kernel
}

// RestrictFlags are the flags of landlock_restrict_self(2) for abi: with ABI 7
// denials are logged also after the launcher's execve
// (LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON), and those of sandboxes that the
// program makes itself are not (LOG_SUBDOMAINS_OFF), so that it can neither
// silence nor forge records.
func RestrictFlags(abi int) uint32 {
	if abi < 7 {
		return 0
	}
	return unix.LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON | unix.LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF
}
