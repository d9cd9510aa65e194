package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The monitors' conversation with the one reader of the kernel's audit records,
// on denials.sock in the run directory:
//
//	[ monitor ]                               [ nemoclaw-gateway denials ]
//	watch{…}                              ──▶ knows a sandbox from now on
//	                                      ◀── told{} at once, then
//	                                          told{…} as it happens
//	half-closed                           ──▶ tells the rest, and closes
//
// Whoever listens there is a child of some monitor; only root reaches the
// socket. The reader parses text that programs chose: what it tells is written
// down, and nothing is decided by it.

// DenialsSocket is the reader's socket in the run directory.
const DenialsSocket = "denials.sock"

// Watch makes a sandbox known to the reader.
type Watch struct {
	Launcher string `json:"launcher"` // LauncherName of the container; only root may know it
	InitPID  int    `json:"init_pid"`
	// Cgroups are the lines of /proc/PID/cgroup ("HIERARCHY:CONTROLLERS:PATH",
	// cgroups(7)) that no process outside of the sandbox has.
	Cgroups []string `json:"cgroups"`
	// Domains are those that a reader before this one told of.
	Domains []Domain `json:"domains,omitempty"`
}

// Domain is a Landlock domain: what init or one exec was sealed into.
type Domain struct {
	ID  string `json:"id"`  // the kernel's number, hexadecimal
	PID int    `json:"pid"` // of the program that was sealed; its children are in the domain too
	UID int    `json:"uid"`
}

// Told is what the reader says about one sandbox, since it said something last.
type Told struct {
	Domains []Domain       `json:"domains,omitempty"` // new ones
	Ended   []string       `json:"ended,omitempty"`   // domains, by ID, whose last process has ended
	Denials []Denial       `json:"denials,omitempty"`
	Folded  map[string]int `json:"folded,omitempty"` // by layer: denials beyond those listed
	// Lost are records that the reader could not take, of all sandboxes and
	// all other programs of the host together.
	Lost int `json:"lost,omitempty"`
	// Unknown are denials of processes that had ended before it could be told
	// whose they were, of any sandbox or none.
	Unknown int `json:"unknown,omitempty"`
}

// The layers of a Denial.
const (
	LayerLandlock = "landlock"
	LayerSeccomp  = "seccomp"
)

// Denial is one thing that the kernel refused to a program in a sandbox.
type Denial struct {
	Layer  string    `json:"layer"`
	Time   time.Time `json:"time"`
	Rights []string  `json:"rights,omitempty"` // of Landlock: "fs.read_file"
	Path   string    `json:"path,omitempty"`   // as the program sees it
	Device string    `json:"device,omitempty"`
	Inode  string    `json:"inode,omitempty"`
	Call   string    `json:"call,omitempty"` // of seccomp: the system call
	PID    int       `json:"pid"`            // in the host's pid namespace
	UID    int       `json:"uid"`
	Name   string    `json:"name,omitempty"`
	Exe    string    `json:"exe,omitempty"`
	// OrChild says that PID is the program that was sealed, and that it or one
	// of its descendants was refused: the kernel does not say which.
	OrChild bool `json:"or_child,omitempty"`
}

// launcherPrefix begins the names of launchers.
const launcherPrefix = "nemoclaw-launch:"

// LauncherFile holds the name of a container's launcher.
const LauncherFile = "launcher"

// ReadDomains reads the domains of a gateway's containers, by launcher, which
// the monitor before this one knew; none if there is no file.
func ReadDomains(gateway string) (map[string][]Domain, error) {
	var d map[string][]Domain
	err := readJSON(filepath.Join(gateway, DomainsFile), &d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return d, err
}

// WriteDomains replaces them whole.
func WriteDomains(gateway string, d map[string][]Domain) error {
	return writeJSON(filepath.Join(gateway, DomainsFile), d)
}

// NewLauncher chooses the name of the memory file that the launcher of a container
// lies in, and keeps it in dir, the container's state directory. The kernel tells
// the name when the launcher's Landlock domain denies something for the first time,
// which is how the domain is known to be the container's. Only root can know it:
// whoever could guess it would be taken for the container.
func NewLauncher(dir string) (string, error) {
	b := make([]byte, 16)
	rand.Read(b)
	name := launcherPrefix + hex.EncodeToString(b)
	if err := os.WriteFile(filepath.Join(dir, LauncherFile), []byte(name), 0o600); err != nil {
		return "", fmt.Errorf("cannot keep the launcher's name: %w", err)
	}
	return name, nil
}

// LauncherName is the name that NewLauncher chose.
func LauncherName(dir string) (string, error) {
	name, err := os.ReadFile(filepath.Join(dir, LauncherFile))
	if err != nil {
		return "", fmt.Errorf("cannot tell the launcher's name: %w", err)
	}
	return string(name), nil
}

// DialReader connects to the reader of denials in the run directory.
func DialReader(runDir string) (*Conn, error) {
	u, err := Dial("unixpacket", runDir, DenialsSocket)
	if err != nil {
		return nil, err
	}
	return newConn(u)
}

// CloseWrite says that no more will be sent, and goes on receiving.
func (c *Conn) CloseWrite() error { return c.c.CloseWrite() }

// PeerUID is the user at the other end when the conversation began
// (SO_PEERCRED, unix(7)).
func (c *Conn) PeerUID() (uint32, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, fmt.Errorf("cannot tell who speaks: %w", err)
	}
	return cred.Uid, nil
}

// LockReader takes the place of the reader of a run directory; the lock goes
// with the last copy of the file. unix.EWOULDBLOCK: somebody has it.
func LockReader(runDir string) (*os.File, error) {
	f, err := os.Open(runDir)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SweepReader removes the socket of a reader that has ended, and reports whether
// none runs now. One that is about to end is waited for.
func SweepReader(runDir string, wait time.Duration) bool {
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		if lock, err := LockReader(runDir); err == nil {
			os.Remove(filepath.Join(runDir, DenialsSocket))
			lock.Close()
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
