package witness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
)

// Witness reads what confines processes. It is not for several goroutines.
type Witness struct {
	layout *layout
	window *window
	lister *ebpf.Program
	iter   *link.Iter
	word   int               // where Landlock keeps its word, an offset into a blob
	space  uint64            // the inode of our pid namespace
	spaces map[uint64]uint64 // of every pid namespace, by its address
}

// Thread is what the kernel keeps of one thread.
type Thread struct {
	TID     int    // in our pid namespace
	Mode    uint32 // of seccomp: 0 none, 1 strict, 2 filter
	Filters int    // number of seccomp filters

	filter uint64 // address of the newest; 0: none
	domain uint64 // address of the Landlock domain; 0: none
	blob   []byte
}

// Confined reports whether the thread is in a Landlock domain.
func (t Thread) Confined() bool { return t.domain != 0 }

// SameDomain reports whether two threads are in one and the same domain, and
// SameFilters whether they have the same filters: what was read of one need
// not be read of the other.
func (t Thread) SameDomain(o Thread) bool { return t.domain == o.domain }

// SameFilters is told with SameDomain.
func (t Thread) SameFilters(o Thread) bool { return t.filter == o.filter }

// Domain is a Landlock domain.
type Domain struct {
	ID     uint64 // as the audit records name it; 0: the kernel gives none (before 6.15)
	Layers []Layer
	Rules  []Rule // on files
}

// Layer is what one ruleset restricts, the oldest first.
type Layer struct{ FS, Net, Scope uint64 }

// Rule is what a domain grants beneath one file.
type Rule struct {
	Dev    uint64   // of the file system, as mkdev(3) has it
	Ino    uint64   // as the kernel numbers it, which is not everywhere what stat(2) shows
	Magic  uint64   // of the file system, as statfs(2) has it
	Access []uint64 // by layer; what the layer does not restrict is not in it
}

// Filter is a seccomp filter as it was loaded.
type Filter struct {
	Code []byte // struct sock_filter, one behind the other
	Log  bool   // its denials are recorded (SECCOMP_FILTER_FLAG_LOG)
}

// Open prepares a witness and calibrates it. It takes root on a kernel of 5.14
// or later that describes itself and is not locked down for confidentiality
// (kernel_lockdown(7)); the error says what is missing.
func Open() (_ *Witness, err error) {
	w := new(Witness)
	defer func() {
		if err != nil {
			w.Close()
			err = fmt.Errorf("cannot look into the kernel: %w", err)
		}
	}()
	st, err := os.Stat("/proc/thread-self/ns/pid")
	if err != nil {
		return nil, err
	}
	w.space, w.spaces = st.Sys().(*syscall.Stat_t).Ino, map[uint64]uint64{}
	_ = rlimit.RemoveMemlock() // for kernels before 5.11; without it loading fails, and says so
	if w.layout, err = readLayout(); err != nil {
		return nil, err
	}
	if w.window, err = openWindow(); err != nil {
		return nil, err
	}
	if w.lister, err = ebpf.NewProgram(lister(w.layout)); err != nil {
		return nil, err
	}
	if w.iter, err = link.AttachIter(link.IterOptions{Program: w.lister}); err != nil {
		return nil, err
	}
	return w, hooks.OnThread(w.calibrate)
}

// Close lets go of the kernel.
func (w *Witness) Close() {
	if w.iter != nil {
		w.iter.Close()
	}
	if w.lister != nil {
		w.lister.Close()
	}
	if w.window != nil {
		w.window.Close()
	}
}

// Threads returns every thread that our pid namespace knows, as it is now.
func (w *Witness) Threads() ([]Thread, error) {
	r, err := w.iter.Open()
	if err != nil {
		return nil, fmt.Errorf("cannot list threads: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("cannot list threads: %w", err)
	}
	var list []Thread
	for ; len(b) >= recordSize; b = b[recordSize:] {
		tid, err := w.number(b)
		if err != nil {
			return nil, fmt.Errorf("cannot list threads: %w", err)
		}
		if tid == 0 {
			continue // it is ending
		}
		blob := b[atBlob:recordSize]
		list = append(list, Thread{
			TID: tid, Mode: binary.NativeEndian.Uint32(b[atMode:]), Filters: int(binary.NativeEndian.Uint32(b[atFilters:])),
			filter: binary.NativeEndian.Uint64(b[atFilter:]), domain: binary.NativeEndian.Uint64(blob[w.word:]), blob: blob,
		})
	}
	return list, nil
}

// number returns the thread id in our pid namespace of a record's thread, 0 if it
// has none.
func (w *Witness) number(record []byte) (int, error) {
	l := w.layout
	levels := min(int(binary.NativeEndian.Uint32(record[atLevel:]))+1, maxLevels)
	for at := range levels {
		upid := record[atNumbers+at*upidSize:]
		space := binary.NativeEndian.Uint64(upid[l.upidSpace:])
		if space == 0 {
			continue
		}
		inode, known := w.spaces[space]
		if !known {
			b, err := w.window.at(offset(space, l.spaceInode), 4)
			if err != nil {
				return 0, err
			}
			inode = uint64(binary.NativeEndian.Uint32(b))
			w.spaces[space] = inode
		}
		if inode == w.space {
			return int(binary.NativeEndian.Uint32(upid[l.upidNumber:])), nil
		}
	}
	return 0, nil
}

// The domain that the witness is tried on: rights that the thread does not
// need to go on, and one rule, on the root directory. Refer is one of them
// because every domain denies it, asked or not (landlock(7)).
const (
	triedRights = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_REFER
	triedRule   = unix.LANDLOCK_ACCESS_FS_MAKE_FIFO
)

// calibrate finds Landlock's word. The calling thread enters a domain that it
// never leaves: it must be thrown away.
func (w *Witness) calibrate() error {
	tid := unix.Gettid()
	before, err := w.thread(tid)
	if err != nil {
		return err
	}
	root, err := enterDomain()
	if err != nil {
		return fmt.Errorf("cannot enter a domain to read it: %w", err)
	}
	after, err := w.thread(tid)
	if err != nil {
		return err
	}
	for w.word = 0; w.word+8 <= blobSize; w.word += 8 {
		was, is := binary.NativeEndian.Uint64(before.blob[w.word:]), binary.NativeEndian.Uint64(after.blob[w.word:])
		if was == is || is == 0 {
			continue
		}
		if d, err := w.domain(is); err == nil && isTried(d, root) {
			return nil
		}
	}
	return errors.New("a domain of known content was entered, and is not found: this kernel keeps it otherwise")
}

func isTried(d *Domain, root uint64) bool {
	last := len(d.Layers) - 1
	if last < 0 || d.Layers[last] != (Layer{FS: triedRights}) {
		return false
	}
	for _, r := range d.Rules {
		if len(r.Access) == len(d.Layers) && r.Access[last] == triedRule && r.Ino == root {
			return true
		}
	}
	return false
}

// enterDomain returns the inode of the one rule.
func enterDomain() (uint64, error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return 0, err
	}
	set, err := ll.LandlockCreateRuleset(&ll.RulesetAttr{HandledAccessFS: triedRights}, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(set)
	if err := ll.LandlockAddPathBeneathRule(set, &ll.PathBeneathAttr{AllowedAccess: triedRule, ParentFd: dir}, 0); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(set), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return st.Ino, nil
}

func (w *Witness) thread(tid int) (Thread, error) {
	all, err := w.Threads()
	if err != nil {
		return Thread{}, err
	}
	for _, t := range all {
		if t.TID == tid {
			return t, nil
		}
	}
	return Thread{}, errors.New("this thread is not found: its pid namespace lies too deep")
}

// Domain returns the domain of t, or nil if it is in none. It is to be believed
// if t is still in that domain afterwards.
func (w *Witness) Domain(t Thread) (*Domain, error) {
	if t.domain == 0 {
		return nil, nil
	}
	return w.domain(t.domain)
}

// Filters returns the seccomp filters of t, the oldest first. It is to be
// believed if t still has them afterwards.
func (w *Witness) Filters(t Thread) ([]Filter, error) {
	return w.filters(t.filter)
}
