package hooks

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	goruntime "runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// headless is the environment variable that makes this binary a program whose
// first thread ends while another goes on, until its standard input does.
const headless = "NEMOCLAW_TEST_HEADLESS"

func init() {
	if os.Getenv(headless) == "" {
		return
	}
	goruntime.LockOSThread() // an init runs on the first thread
	go func() {
		for !isZombie() {
			goruntime.Gosched()
		}
		os.Stdout.WriteString("alone\n")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}

// isZombie tells whether the first thread of this process has ended.
func isZombie() bool {
	_, err := os.Stat("/proc/self/ns/net")
	return err != nil
}

// A program lives in its namespace also when its first thread has ended, as a
// program can have it to be overlooked.
func TestInhabitantWithoutAFirstThread(t *testing.T) {
	w := newWorld(t)
	if pid, err := Inhabitant(w.inner); pid != 0 || err != nil {
		t.Fatalf("in an empty namespace lives %d, %v", pid, err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{headless + "=1"}
	stdin, err := cmd.StdinPipe()
	w.must(err)
	stdout, err := cmd.StdoutPipe()
	w.must(err)
	w.must(In(w.inner, cmd.Start))
	defer cmd.Wait()
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("it says %q, %v", line, err)
	}
	if pid, err := Inhabitant(w.inner); pid != cmd.Process.Pid || err != nil {
		t.Errorf("in the namespace lives %d, %v; want %d", pid, err, cmd.Process.Pid)
	}
}
