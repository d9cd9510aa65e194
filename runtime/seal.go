package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/landlock"
)

// The plan is what the launcher reads, struct plan of launch.c:
//
//	0     magic           uint32
//	4     first filter    uint16, instructions; 0 if libcontainer loads it
//	6     second filter   uint16, instructions
//	8     restrict flags  uint32
//	12    limits          uint32
//	16    limits          resource, soft, hard: uint64 each, room for 2
//	64    program         4096 bytes, NUL-terminated
//	4160  directory       4096 bytes, NUL-terminated, to be entered; or empty
//	8256  filters         8 bytes an instruction, the first before the second
const (
	planMagic  = 0x344c434e // "NCL4"
	planLimits = 16
	planHeader = planLimits + maxLate*24
	planPath   = 4096
	maxFilter  = 4096 // instructions of each filter, BPF_MAXINSNS

	allSeals  = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	sealExec  = 0x20 // F_SEAL_EXEC (Linux 6.3), not in x/sys
	mfdExec   = unix.MFD_EXEC
	mfdNoExec = unix.MFD_NOEXEC_SEAL
)

// seal is the four descriptors that a program is confined by. They are made
// before anything of the container runs and filled when its root stands.
type seal struct {
	abi     int
	exe     *os.File // the launcher
	plan    *os.File // what it reads; writable here until sealed
	ruleset *os.File // filled by grant, or received from the monitor
	canary  *os.File // a directory that no rule can cover
	limits  []configs.Rlimit
}

// newRuleset makes an empty ruleset. scopes are those of landlock, or 0,
// which needs ABI 6.
func newRuleset(abi int, scopes uint64) (*os.File, error) {
	fd, err := ll.LandlockCreateRuleset(&ll.RulesetAttr{HandledAccessFS: uint64(landlock.Handled(abi)), Scoped: scopes}, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a Landlock ruleset: %w", err)
	}
	return os.NewFile(uintptr(fd), "landlock-ruleset"), nil
}

// newSeal makes the descriptors beside the ruleset, which it takes over. The
// launcher's name is how the kernel's records call the sandbox.
func newSeal(abi int, ruleset *os.File, launcherName string) (_ *seal, err error) {
	s := &seal{abi: abi, ruleset: ruleset}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.exe, err = launcherFile(launcherName); err != nil {
		return nil, fmt.Errorf("cannot prepare the launcher: %w", err)
	}
	if s.plan, err = memfd("nemoclaw-plan", mfdNoExec, 0); err != nil {
		return nil, fmt.Errorf("cannot prepare the launcher's plan: %w", err)
	}
	if s.canary, err = newCanary(); err != nil {
		return nil, fmt.Errorf("cannot make the launcher's canary: %w", err)
	}
	return s, nil
}

// memfd makes an anonymous file. Kernels before 6.3 know neither MFD_EXEC nor
// MFD_NOEXEC_SEAL and refuse them (memfd_create(2)).
func memfd(name string, exec int, mode uint32) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|exec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// launcherFile is the launcher in a memfd that nobody can change (the way of
// CVE-2019-5736) and nobody can read: a program that is not readable is not
// dumpable, so its own user cannot trace it (execve(2)).
func launcherFile(name string) (*os.File, error) {
	f, err := memfd(name, mfdExec, 0o111)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(launcher); err == nil {
		if _, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals|sealExec); errors.Is(err, unix.EINVAL) {
			_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// newCanary makes an empty tmpfs that is mounted nowhere. Any user may read it,
// and no rule covers it, not even one on "/": only Landlock denies it.
func newCanary() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	for _, opt := range [][2]string{{"mode", "0555"}, {"size", "4096"}, {"nr_inodes", "1"}} {
		if err := unix.FsconfigSetString(fs, opt[0], opt[1]); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "canary"), nil
}

// wrap makes the launcher the program of p: its descriptors come last, so that
// those the caller passes keep their numbers.
func (s *seal) wrap(p *libcontainer.Process) {
	first := 3 + len(p.ExtraFiles)
	p.ExtraFiles = append(p.ExtraFiles, s.exe, s.plan, s.ruleset, s.canary)
	p.Args = append([]string{fmt.Sprintf("/proc/self/fd/%d", first)}, p.Args...)
}

// filters are what the launcher loads of layer 2. The first is empty where the
// engine gave a profile, which libcontainer loads.
type filters struct{ first, second []unix.SockFilter }

// whole returns an error if nobody would load the first filter: neither the
// launcher nor libcontainer, whose profile is the container's.
func (f filters) whole(profile *configs.Seccomp) error {
	if len(f.first) == 0 && profile == nil {
		return errors.New("cannot confine the program: the first seccomp filter is missing")
	}
	return nil
}

// finish writes the plan and seals it: program is resolved, cwd is the working
// directory if that must be entered again. From here on nobody can change what the launcher
// will do.
func (s *seal) finish(program, cwd string, f filters) error {
	for _, name := range []string{program, cwd} {
		if len(name) >= planPath {
			return fmt.Errorf("exec: %q: %w", name, unix.ENAMETOOLONG)
		}
	}
	b := make([]byte, planHeader+2*planPath, planHeader+2*planPath+8*(len(f.first)+len(f.second)))
	binary.NativeEndian.PutUint32(b[0:], planMagic)
	binary.NativeEndian.PutUint16(b[4:], uint16(len(f.first)))
	binary.NativeEndian.PutUint16(b[6:], uint16(len(f.second)))
	binary.NativeEndian.PutUint32(b[8:], landlock.RestrictFlags(s.abi))
	binary.NativeEndian.PutUint32(b[12:], uint32(len(s.limits)))
	for i, l := range s.limits {
		at := b[planLimits+i*24:]
		binary.NativeEndian.PutUint64(at[0:], uint64(l.Type))
		binary.NativeEndian.PutUint64(at[8:], l.Soft)
		binary.NativeEndian.PutUint64(at[16:], l.Hard)
	}
	copy(b[planHeader:], program)
	copy(b[planHeader+planPath:], cwd)
	b = append(b, encodeFilter(f.first)...)
	b = append(b, encodeFilter(f.second)...)
	if _, err := s.plan.WriteAt(b, 0); err != nil {
		return fmt.Errorf("cannot write the launcher's plan: %w", err)
	}
	if _, err := unix.FcntlInt(s.plan.Fd(), unix.F_ADD_SEALS, allSeals); err != nil {
		return fmt.Errorf("cannot seal the launcher's plan: %w", err)
	}
	return nil
}

// Close closes the descriptors here; the container has its own.
func (s *seal) Close() {
	for _, f := range []*os.File{s.exe, s.plan, s.ruleset, s.canary} {
		if f != nil {
			f.Close()
		}
	}
}

func encodeFilter(filter []unix.SockFilter) []byte {
	var b []byte
	for _, i := range filter {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

func decodeFilter(b []byte) ([]unix.SockFilter, error) {
	if len(b) == 0 || len(b)%8 != 0 || len(b) > 8*maxFilter {
		return nil, errors.New("cannot understand the stored filter: its length is wrong")
	}
	var filter []unix.SockFilter
	for ; len(b) > 0; b = b[8:] {
		filter = append(filter, unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	return filter, nil
}
