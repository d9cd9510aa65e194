package witness

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
)

// open returns a witness, or skips the test where the kernel cannot be looked
// into. CI must be able to.
func open(t *testing.T) *Witness {
	t.Helper()
	w, err := Open()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(w.Close)
	return w
}

// on runs f on a thread that is thrown away, and fails the test with its error.
func on(t *testing.T, f func() error) {
	t.Helper()
	if err := hooks.OnThread(f); err != nil {
		t.Fatal(err)
	}
}

// restrict enters a domain that handles rights, with scopes, and grants each
// file what it says.
func restrict(handled, scopes uint64, files map[string]uint64) error {
	set, err := ll.LandlockCreateRuleset(&ll.RulesetAttr{HandledAccessFS: handled, Scoped: scopes}, 0)
	if err != nil {
		return err
	}
	defer unix.Close(set)
	for name, access := range files {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := ll.LandlockAddPathBeneathRule(set, &ll.PathBeneathAttr{AllowedAccess: access, ParentFd: fd}, 0); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(set), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

const (
	read  = unix.LANDLOCK_ACCESS_FS_READ_FILE
	write = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	list  = unix.LANDLOCK_ACCESS_FS_READ_DIR
	refer = unix.LANDLOCK_ACCESS_FS_REFER // every domain denies it, asked or not
)

// A domain is read with its layers, and each rule with the file that it is on
// and what every layer grants there.
func TestDomainIsReadWhole(t *testing.T) {
	w := open(t)
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	for _, err := range []error{os.WriteFile(file, nil, 0o600), os.Link(file, link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	on(t, func() error {
		if err := restrict(read|write|list|refer, unix.LANDLOCK_SCOPE_SIGNAL, map[string]uint64{dir: read | list, file: read, link: write, "/proc": list}); err != nil {
			return err
		}
		if err := restrict(write|refer, 0, map[string]uint64{dir: write}); err != nil {
			return err
		}
		thread, err := w.thread(unix.Gettid())
		if err != nil {
			return err
		}
		d, err := w.Domain(thread)
		if err != nil {
			return err
		}
		if want := []Layer{{FS: read | write | list | refer, Scope: unix.LANDLOCK_SCOPE_SIGNAL}, {FS: write | refer}}; !slices.Equal(d.Layers, want) {
			t.Errorf("layers %+v, want %+v", d.Layers, want)
		}
		// The two names of one file are one rule.
		want := map[string][]uint64{dir: {read | list, write}, file: {read | write, 0}, "/proc": {list, 0}}
		if len(d.Rules) != len(want) {
			t.Errorf("%d rules, want %d", len(d.Rules), len(want))
		}
		for name, access := range want {
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				return err
			}
			if !slices.ContainsFunc(d.Rules, func(r Rule) bool { return r.Dev == st.Dev && r.Ino == st.Ino && slices.Equal(r.Access, access) }) {
				t.Errorf("no rule on %s (%d, %d) with %b: %+v", name, st.Dev, st.Ino, access, d.Rules)
			}
		}
		return nil
	})
}

// A thread in no domain is told from one that is, in the same process.
func TestThreadsAreToldApart(t *testing.T) {
	w := open(t)
	on(t, func() error {
		free, err := w.thread(unix.Gettid())
		if err != nil {
			return err
		}
		if d, err := w.Domain(free); free.Confined() || d != nil || err != nil {
			t.Errorf("a free thread is in the domain %+v (%v)", d, err)
		}
		if err := restrict(unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK, 0, nil); err != nil {
			return err
		}
		held, err := w.thread(unix.Gettid())
		if err != nil {
			return err
		}
		if !held.Confined() || held.SameDomain(free) || !held.SameFilters(free) {
			t.Errorf("a thread in a domain is seen as %+v", held)
		}
		return nil
	})
}

// Filters are read as they were loaded, the oldest first.
func TestFiltersAreReadWhole(t *testing.T) {
	w := open(t)
	denying := func(nr uint32) []unix.SockFilter {
		return []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}
	}
	loaded := []struct {
		code  []unix.SockFilter
		flags uintptr
	}{{denying(unix.SYS_SYSLOG), 0}, {denying(unix.SYS_REBOOT), unix.SECCOMP_FILTER_FLAG_LOG}}
	on(t, func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		for _, l := range loaded {
			prog := unix.SockFprog{Len: uint16(len(l.code)), Filter: &l.code[0]}
			if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, l.flags, uintptr(unsafe.Pointer(&prog))); errno != 0 {
				return errno
			}
		}
		thread, err := w.thread(unix.Gettid())
		if err != nil {
			return err
		}
		filters, err := w.Filters(thread)
		if err != nil {
			return err
		}
		if thread.Mode != unix.SECCOMP_MODE_FILTER || thread.Filters < len(loaded) || len(filters) != thread.Filters {
			t.Fatalf("mode %d, %d filters counted, %d read", thread.Mode, thread.Filters, len(filters))
		}
		for i, f := range filters[len(filters)-len(loaded):] {
			if !bytes.Equal(f.Code, encode(loaded[i].code)) || f.Log != (loaded[i].flags != 0) {
				t.Errorf("filter %d is read as %x, log %v", i, f.Code, f.Log)
			}
		}
		return nil
	})
}

func encode(code []unix.SockFilter) []byte {
	var b []byte
	for _, i := range code {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// What the kernel does not have under a name is an error and no offset.
func TestLayoutIsNotGuessed(t *testing.T) {
	open(t)
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ structure, member string }{{"landlock_ruleset", "nothing"}, {"nothing", "root_inode"}} {
		f := finder{kernel: kernel}
		f.at(c.structure, c.member)
		if f.err == nil {
			t.Errorf("struct %s has a %s", c.structure, c.member)
		}
	}
}

// Memory that is not there is an error; nothing is read but what is asked for.
func TestWindowIsSafe(t *testing.T) {
	w := open(t)
	for _, address := range []uint64{0, 8, 1 << 40, ^uint64(0) - 8} {
		if b, err := w.window.at(address, 8); err == nil {
			t.Errorf("%#x holds %x", address, b)
		}
	}
}

// Device numbers are told as stat(2) has them.
func TestMkdev(t *testing.T) {
	for _, c := range []struct{ major, minor uint32 }{{0, 45}, {254, 0}, {8, 17}, {259, 300}, {4095, 1<<20 - 1}} {
		if got, want := mkdev(c.major<<20|c.minor), unix.Mkdev(c.major, c.minor); got != want {
			t.Errorf("%d:%d is %#x, want %#x", c.major, c.minor, got, want)
		}
	}
}
