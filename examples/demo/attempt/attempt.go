package attempt

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Marker is the file by which the agent knows the root that the demo made. It
// tries forbidden things, and tries them nowhere else.
const Marker = "/.nemoclaw-demo"

// Request is one thing to try: a line of JSON on the agent's standard input.
type Request struct {
	Do   string `json:"do"` // one of the verbs below
	What string `json:"what,omitempty"`
}

// The verbs.
const (
	Work       = "work"       // run the shell script What
	Read       = "read"       // the file What
	Write      = "write"      // the file What, which does not exist
	Call       = "call"       // the system call What: "ptrace", "mount" or "socket"
	Interfaces = "interfaces" // list them
	Get        = "get"        // the URL What
	Hold       = "hold"       // the URL What: read a line of it and stay connected
	Held       = "held"       // wait until what Hold opened is cut
)

// Outcome answers a Request: a line of JSON on the agent's standard output.
type Outcome struct {
	Did   bool   `json:"did"`             // it worked
	Text  string `json:"text"`            // what came back, or the error
	Errno string `json:"errno,omitempty"` // the kernel's answer, as in "EACCES"

	// OwnerMay tells, of Read and Write, that owner and mode of the file or its
	// directory let the agent do it, and that the mount is writable for Write:
	// if it failed with EACCES all the same, Landlock answered.
	OwnerMay bool `json:"owner_may,omitempty"`

	// Impossible is, of Call, the answer to the function of that name.
	Impossible string `json:"impossible,omitempty"`

	Status int `json:"status,omitempty"` // of Get: HTTP's

	Took int64 `json:"took"` // milliseconds
}

// Impossible makes the system call named, as Call has it, with arguments that
// fail before the kernel asks for any permission, with an error that no filter
// gives. Outside of a sandbox it shows the kernel's answer; inside, a filter
// answers first. Either way nothing happens.
func Impossible(call string) error {
	switch call {
	case "ptrace": // no process has this pid: ESRCH (ptrace(2))
		return Seize(1 << 30)
	case "mount": // no directory has the empty name: ENOENT (path_resolution(7))
		return unix.Mount("none", "", "tmpfs", 0, "")
	case "socket": // 0x10 is no flag of a socket's type: EINVAL (socket(2))
		return Packet(0x10)
	}
	return unix.ENOSYS
}

// Seize attaches to the process pid without stopping it.
func Seize(pid int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Packet opens, and closes, a socket that sees every packet of every interface.
// flags are added to its type.
func Packet(flags int) error {
	const everything = uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8) // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|flags, int(everything))
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// Errno returns the name of the kernel's answer in err, or "".
func Errno(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return ""
}
