package vm

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a machine may say nothing before it is called dead.
const patience = 3 * time.Minute

// disk is what a machine remembers when it is off: its file system, and the tree
// with its programs and tests, which is mounted at /nemoclaw.
type disk struct{ root, tree string }

// newDisk is a copy of the file system as it was made.
func newDisk(t *testing.T) disk {
	t.Helper()
	dir := t.TempDir()
	d := disk{filepath.Join(dir, "root.img"), filepath.Join(dir, "tree.img")}
	sh(t, `cp --sparse=always "$1/root.img" "$2"; mke2fs -q -t ext4 -d "$3" "$4" 1G`, cache(t), d.root, tree(t), d.tree)
	return d
}

// machine is one that is on.
type machine struct {
	t       *testing.T
	disk    disk
	qemu    *exec.Cmd
	in      *os.File
	lines   chan string // of the serial line; closed when the machine is off
	console string      // a file
}

// boot turns a machine on with one of the cache's kernels, "new" or "old". It is
// turned off when the test ends, if not before.
func boot(t *testing.T, kernel string, d disk) *machine {
	t.Helper()
	began := time.Now()
	m := &machine{t: t, disk: d, lines: make(chan string, 1024), console: filepath.Join(filepath.Dir(d.root), "console")}
	root := filepath.Join(cache(t), "qemu")
	m.qemu = exec.Command(filepath.Join(root, "usr/bin/qemu-system-x86_64"),
		"-L", filepath.Join(root, "usr/share/qemu"), "-L", filepath.Join(root, "usr/share/seabios"),
		// Without cmpxchg16b, after which qemu 7.2 may restore the wrong flags.
		"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem,cx16=off", "-smp", "2", "-m", "2048",
		"-machine", "q35,sata=off,smbus=off", "-nodefaults", "-no-reboot", "-display", "none",
		"-kernel", filepath.Join(cache(t), kernel),
		"-append", "root=/dev/nvme0n1 rw console=ttyS0 panic=-1 mitigations=off nowatchdog tsc=reliable systemd.unit=agent.service",
		// Of two disks of one kind the kernel may find either first.
		"-drive", "file="+d.root+",format=raw,if=none,id=root", "-device", "nvme,drive=root,serial=root",
		"-drive", "file="+d.tree+",format=raw,if=none,id=tree", "-device", "virtio-blk-pci,drive=tree",
		"-serial", "file:"+m.console, "-serial", "stdio")
	m.qemu.Env = append(os.Environ(), "LD_LIBRARY_PATH="+libraries(t, root))
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.qemu.Stderr = os.Stderr
	theirs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m.in, m.qemu.Stdin, m.qemu.Stdout = in, theirs, ours
	started := make(chan error)
	go m.own(started)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ours.Close()
	go m.listen(out)
	t.Cleanup(m.cut)
	m.answer(func(string) {})
	m.must("mkdir -p /nemoclaw; modprobe -a virtio_pci virtio_blk; mount /dev/vda /nemoclaw; ip link set lo up")
	t.Logf("Linux %s, up in %.0f s", m.must("uname -r"), time.Since(began).Seconds())
	return m
}

// own starts qemu on a thread that lives as long as it, since a parent's death
// signal is that of the thread (prctl(2), PR_SET_PDEATHSIG).
func (m *machine) own(started chan<- error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	err := m.qemu.Start()
	started <- err
	if err == nil {
		_ = m.qemu.Wait()
	}
}

func (m *machine) listen(out *os.File) {
	defer out.Close()
	defer close(m.lines)
	s := bufio.NewScanner(out)
	for s.Buffer(nil, 1<<24); s.Scan(); {
		m.lines <- s.Text()
	}
}

// cut takes the power away.
func (m *machine) cut() {
	_ = m.qemu.Process.Kill()
	m.in.Close()
	for range m.lines {
	}
}

// ended waits until the machine has turned itself off.
func (m *machine) ended() {
	m.t.Helper()
	for {
		if _, more := m.hear(); !more {
			return
		}
	}
}

func (m *machine) hear() (line string, more bool) {
	m.t.Helper()
	select {
	case line, more = <-m.lines:
		return line, more
	case <-time.After(patience):
		m.t.Fatalf("the machine has said nothing for %v; its console:\n%s", patience, m.lastWords())
		return "", false
	}
}

// answer calls said with each line of what a script says, until it has ended,
// and returns its exit status.
func (m *machine) answer(said func(line string)) int {
	m.t.Helper()
	for {
		line, more := m.hear()
		if !more {
			m.t.Fatalf("the machine went off; its console:\n%s", m.lastWords())
		}
		if status, ok := strings.CutPrefix(line, "\x01"); ok {
			code, err := strconv.Atoi(status)
			if err != nil {
				m.t.Fatalf("the machine speaks strangely: %q", line)
			}
			return code
		}
		said(line)
	}
}

// tell gives the machine's root shell a script.
func (m *machine) tell(script string) {
	m.t.Helper()
	if _, err := fmt.Fprint(m.in, script, "\x01"); err != nil {
		m.t.Fatal(err)
	}
}

// run runs a script in the machine, as root, and returns what it says and its
// exit status.
func (m *machine) run(script string) (string, int) {
	m.t.Helper()
	var lines []string
	m.tell(script)
	code := m.answer(func(line string) { lines = append(lines, line) })
	return strings.TrimRight(strings.Join(lines, "\n"), "\n"), code
}

// must runs a script all of whose commands must succeed.
func (m *machine) must(script string) string {
	m.t.Helper()
	said, code := m.run("set -e\n" + script)
	if code != 0 {
		m.t.Fatalf("exit status %d of\n%s\n%s", code, script, said)
	}
	return said
}

// lastWords is the end of what the kernel wrote to its console.
func (m *machine) lastWords() string {
	text, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// libraries is where the programs below a root directory find theirs.
func libraries(t *testing.T, root string) string {
	t.Helper()
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu", "lib/*-linux-gnu"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, found...)
	}
	return strings.Join(dirs, ":")
}

// sh runs a script on this machine; args are $1 and so on.
func sh(t *testing.T, script string, args ...string) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v of\n%s\n%s", err, script, out)
	}
}
