package arm64

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The launcher, and what runs it; make test-arm64 sets both.
var (
	launcher = os.Getenv("NEMOCLAW_LAUNCH_ARM64")
	qemu     = os.Getenv("NEMOCLAW_QEMU_ARM64")
)

func needEmulator(t *testing.T) {
	t.Helper()
	if launcher == "" || qemu == "" {
		t.Skip("make test-arm64 runs this")
	}
}

// The launcher is one static program of a few pages, with no stack that could be
// executed and nothing that a dynamic linker would look for in the image.
func TestProgram(t *testing.T) {
	needEmulator(t)
	f, err := elf.Open(launcher)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine != elf.EM_AARCH64 || f.Type != elf.ET_EXEC {
		t.Errorf("it is %v %v", f.Machine, f.Type)
	}
	for _, p := range f.Progs {
		switch {
		case p.Type == elf.PT_INTERP, p.Type == elf.PT_DYNAMIC:
			t.Errorf("it has a %v", p.Type)
		case p.Flags&elf.PF_X != 0 && p.Flags&elf.PF_W != 0, p.Type == elf.PT_GNU_STACK && p.Flags&elf.PF_X != 0:
			t.Errorf("%v may be written and executed", p.Type)
		}
	}
	if info, err := os.Stat(launcher); err != nil || info.Size() > 8<<10 {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}

// A plan as runtime/seal.go writes it.
const (
	magic    = 0x344c434e
	header   = 16 + 2*24 // numbers, limits
	pathRoom = 4096
	head     = header + 2*pathRoom // program, working directory
)

// plan is one with two filters, as long as it says, and so many instructions in all.
func plan(magic uint32, first, second uint16, insns int) []byte {
	b := make([]byte, head+8*insns)
	binary.LittleEndian.PutUint32(b, magic)
	binary.LittleEndian.PutUint16(b[4:], first)
	binary.LittleEndian.PutUint16(b[6:], second)
	copy(b[header:], "/bin/true")
	return b
}

// It starts, reads what it was given, refuses what is wrong with status 255 and
// says why. A plan that is right it takes, up to Landlock, which the emulator does
// not have.
func TestLauncher(t *testing.T) {
	needEmulator(t)
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	unterminated, nowhere := plan(magic, 0, 1, 1), plan(magic, 0, 1, 1)
	unterminated[header+pathRoom-1] = 'x'
	nowhere[head-1] = 'x'
	limits := plan(magic, 0, 1, 1)
	limits[12] = 3
	there, gone := plan(magic, 0, 1, 1), plan(magic, 0, 1, 1)
	copy(there[header+pathRoom:], "/")
	copy(gone[header+pathRoom:], "/no/such/directory")
	for _, test := range []struct {
		name  string
		plan  []byte // nil: none
		seals int
		argv0 string
		args  []string
		says  string
	}{
		{"no program", plan(magic, 0, 1, 1), all, "/proc/self/fd/3", nil, "launcher: no program was given"},
		{"by its own name", plan(magic, 0, 1, 1), all, "nemoclaw-launch", []string{"true"}, "launcher: it was not started by the runtime"},
		{"by a number that is none", plan(magic, 0, 1, 1), all, "/proc/self/fd/99999999999999999999", []string{"true"}, "launcher: "},
		{"no plan", nil, 0, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is not sealed: errno 9"},
		{"an open plan", plan(magic, 0, 1, 1), 0, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is not sealed"},
		{"a plan that can still grow", plan(magic, 0, 1, 1), all &^ unix.F_SEAL_GROW, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is not sealed"},
		{"an empty plan", []byte{}, all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"another file", plan(magic+1, 0, 1, 1), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"no filter", plan(magic, 0, 0, 0), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"the first filter alone", plan(magic, 1, 0, 1), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"less of the two filters than it says", plan(magic, 1, 1, 1), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"less filter than it says", plan(magic, 0, 2, 1), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"more filter than it says", plan(magic, 0, 1, 2), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"more filter than there can be", plan(magic, 0, 4097, 4097), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"a first filter that is longer than can be", plan(magic, 4097, 1, 4098), all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"a path without an end", unterminated, all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"more limits than there can be", limits, all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"a directory without an end", nowhere, all, "/proc/self/fd/3", []string{"true"}, "launcher: the plan is malformed"},
		{"a directory that is not there", gone, all, "/proc/self/fd/3", []string{"true"}, "working directory: /no/such/directory: errno 2"},
		{"a directory", there, all, "/proc/self/fd/3", []string{"true"}, "landlock: the ruleset cannot be enforced: errno 38"},
		{"a plan with two filters", plan(magic, 1, 1, 2), all, "/proc/self/fd/3", []string{"true"}, "landlock: the ruleset cannot be enforced: errno 38"},
		{"a plan", plan(magic, 0, 1, 1), all, "/proc/self/fd/3", []string{"true"}, "landlock: the ruleset cannot be enforced: errno 38"},
		{"the largest plan", plan(magic, 4096, 4096, 8192), all, "/proc/self/fd/3", []string{"true"}, "landlock: the ruleset cannot be enforced: errno 38"},
	} {
		t.Run(test.name, func(t *testing.T) {
			exe, err := os.Open(launcher)
			if err != nil {
				t.Fatal(err)
			}
			defer exe.Close()
			cmd := exec.Command(qemu, append([]string{"-0", test.argv0, launcher}, test.args...)...)
			cmd.ExtraFiles = []*os.File{exe}
			if test.plan != nil {
				f := memfd(t, test.plan, test.seals)
				defer f.Close()
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
			var out, says bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &says
			err = cmd.Run()
			var ended *exec.ExitError
			if !errors.As(err, &ended) || ended.ExitCode() != 255 || out.Len() > 0 || !strings.HasPrefix(says.String(), "nemoclaw: cannot run the program: "+test.says) {
				t.Errorf("it ended with %v and said %q, want status 255 and %q", err, says.String(), test.says)
			}
		})
	}
}

func memfd(t *testing.T, content []byte, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "plan")
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}
