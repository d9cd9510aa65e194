// Command agent is the demo's agent: it tries what it is asked to on its
// standard input and answers what came of it. Some of that is forbidden, so it
// runs nowhere but in the root that the demo made.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/examples/demo/attempt"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // a request was not understood
	exitUsage  = 2 // this is not the demo's sandbox
)

func main() { os.Exit(run(os.Stdin, os.Stdout, os.Stderr)) }

func run(stdin io.Reader, stdout, stderr io.Writer) int {
	if _, err := os.Stat(attempt.Marker); err != nil || os.Getpid() != 1 {
		fmt.Fprintln(stderr, "agent: cannot run here: it tries forbidden things, and only in the sandbox of the demo")
		return exitUsage
	}
	a := new(agent)
	requests, answers := json.NewDecoder(stdin), json.NewEncoder(stdout)
	for {
		var r attempt.Request
		err := requests.Decode(&r)
		if errors.Is(err, io.EOF) {
			return exitOK
		}
		if err == nil {
			err = answers.Encode(a.try(r))
		}
		if err != nil {
			fmt.Fprintf(stderr, "agent: cannot understand a request: %v\n", err)
			return exitFailed
		}
	}
}

// How long a request may take, and how long a connection may be held. What takes
// longer hangs, which nothing in a sandbox should.
const (
	patience = 10 * time.Second
	holding  = time.Minute
)

// agent is what lasts from one request to the next.
type agent struct {
	held *bufio.Reader // what Hold opened
}

func (a *agent) try(r attempt.Request) attempt.Outcome {
	start := time.Now()
	o := a.do(r)
	o.Took = time.Since(start).Milliseconds()
	return o
}

func (a *agent) do(r attempt.Request) attempt.Outcome {
	switch r.Do {
	case attempt.Work:
		out, err := exec.Command("/bin/sh", "-c", r.What).CombinedOutput()
		return outcome(string(bytes.TrimSpace(out)), err)
	case attempt.Read:
		return read(r.What)
	case attempt.Write:
		return write(r.What)
	case attempt.Call:
		o := outcome("", call(r.What))
		o.Impossible = attempt.Errno(attempt.Impossible(r.What))
		return o
	case attempt.Interfaces:
		return interfaces()
	case attempt.Get:
		return get(r.What)
	case attempt.Hold:
		return a.hold(r.What)
	case attempt.Held:
		return a.cut()
	}
	return outcome("", fmt.Errorf("cannot try %q", r.Do))
}

func outcome(text string, err error) attempt.Outcome {
	if err != nil {
		return attempt.Outcome{Text: err.Error(), Errno: attempt.Errno(err)}
	}
	return attempt.Outcome{Did: true, Text: text}
}

func read(file string) attempt.Outcome {
	b, err := os.ReadFile(file)
	o := outcome(string(b), err)
	var st unix.Stat_t
	o.OwnerMay = unix.Stat(file, &st) == nil && owns(&st, unix.S_IRUSR)
	return o
}

func write(file string) attempt.Outcome {
	o := outcome("", os.WriteFile(file, []byte("the agent was here\n"), 0o600))
	var st unix.Stat_t
	var fs unix.Statfs_t
	dir := filepath.Dir(file)
	o.OwnerMay = unix.Stat(dir, &st) == nil && owns(&st, unix.S_IWUSR|unix.S_IXUSR) &&
		unix.Statfs(dir, &fs) == nil && fs.Flags&unix.ST_RDONLY == 0
	return o
}

// owns reports whether we own what st describes and its mode gives its owner
// all of bits.
func owns(st *unix.Stat_t, bits uint32) bool {
	return st.Uid == uint32(unix.Geteuid()) && st.Mode&bits == bits
}

// call makes a system call that no agent needs.
func call(name string) error {
	switch name {
	case "ptrace":
		return traceChild()
	case "mount":
		return unix.Mount("none", "/sandbox", "tmpfs", 0, "")
	case "socket":
		return attempt.Packet(0)
	}
	return fmt.Errorf("cannot call %q", name)
}

// traceChild attaches to a child of ours, as a debugger would.
func traceChild() error {
	goruntime.LockOSThread() // it, not the process, is the tracer
	defer goruntime.UnlockOSThread()
	child := exec.Command("/bin/sh", "-c", "read wait")
	hold, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	defer child.Wait()
	defer hold.Close()
	return attempt.Seize(child.Process.Pid)
}

func interfaces() attempt.Outcome {
	list, err := net.Interfaces()
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return outcome(strings.Join(names, " "), err)
}

// open makes a request over a connection of its own, which lasts no longer than
// limit.
func open(url string, limit time.Duration) (*http.Response, error) {
	c := &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	return c.Get(url)
}

func get(url string) attempt.Outcome {
	resp, err := open(url, patience)
	if err != nil {
		return outcome("", cause(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	o := outcome(string(bytes.TrimSpace(body)), cause(err))
	o.Status = resp.StatusCode
	o.Did = o.Did && o.Status == http.StatusOK
	return o
}

// cause takes off what the demo knows already: the request.
func cause(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func (a *agent) hold(url string) attempt.Outcome {
	resp, err := open(url, holding)
	if err != nil {
		return outcome("", cause(err))
	}
	a.held = bufio.NewReader(resp.Body) // never closed: the connection stays
	line, err := a.held.ReadString('\n')
	return outcome(strings.TrimSpace(line), err)
}

// cut waits for the end of what was held. An end that the server made, and
// none, are not what is asked for and still outcomes.
func (a *agent) cut() attempt.Outcome {
	if a.held == nil {
		return outcome("", errors.New("cannot wait: nothing is held"))
	}
	ended := make(chan attempt.Outcome, 1)
	go func() {
		line, err := a.held.ReadString('\n')
		ended <- outcome(line, err)
	}()
	select {
	case o := <-ended:
		return o
	case <-time.After(patience):
		return outcome("still open", nil)
	}
}
