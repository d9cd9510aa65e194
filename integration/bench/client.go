package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clientArg makes this program the client.
const clientArg = "client"

// order is a line on the client's stdin; answer is the line that it gets back.
//
//	[ bench ]                         [ client, inside ]
//	order{http, web:80, 16 clients} -->
//	                                <-- answer{count, p50, p99}
//	(end of stdin: the client exits)
type order struct {
	Op      string   `json:"op"`
	Addr    string   `json:"addr,omitempty"` // host:port
	Via     string   `json:"via,omitempty"`  // a proxy that makes tunnels (CONNECT), as host:port
	Clients int      `json:"clients,omitempty"`
	Count   int      `json:"count,omitempty"`
	Millis  int      `json:"millis,omitempty"`
	Path    string   `json:"path,omitempty"`
	Args    []string `json:"args,omitempty"`
}

type answer struct {
	Count  int    `json:"count,omitempty"`
	Failed int    `json:"failed,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	Nanos  int64  `json:"nanos,omitempty"` // how long it took
	P50    int64  `json:"p50,omitempty"`   // nanoseconds
	P99    int64  `json:"p99,omitempty"`
	At     int64  `json:"at,omitempty"` // CLOCK_MONOTONIC, which all namespaces share
	Fault  string `json:"fault,omitempty"`
}

// beClient carries out orders until there are no more.
func beClient(orders io.Reader, answers io.Writer) int {
	c := new(client)
	in, out := json.NewDecoder(bufio.NewReader(orders)), json.NewEncoder(answers)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return exitOK
		} else if err != nil {
			return exitFailed
		}
		begin := time.Now()
		a, err := c.carryOut(o)
		if err != nil {
			a.Fault = err.Error()
		}
		if a.Nanos == 0 {
			a.Nanos = time.Since(begin).Nanoseconds()
		}
		if err := out.Encode(a); err != nil {
			return exitFailed
		}
	}
}

type client struct{ held []net.Conn }

func (c *client) carryOut(o order) (answer, error) {
	switch o.Op {
	case "http":
		return shortConnections(o)
	case "stream":
		return streams(o)
	case "ask":
		return questions(o)
	case "ask much":
		return manyQuestions(o)
	case "hold":
		return c.hold(o)
	case "drop":
		for _, conn := range c.held {
			conn.Close()
		}
		c.held = nil
		return answer{}, nil
	case "until allowed":
		return until(o, true)
	case "until refused":
		return until(o, false)
	case "find":
		return find(o)
	case "open":
		return open(o)
	case "getppid":
		for range o.Count {
			unix.Getppid()
		}
		return answer{Count: o.Count}, nil
	case "ioctl":
		for range o.Count {
			unix.IoctlGetInt(-1, unix.TIOCGPGRP) // no such descriptor: only the way in is measured
		}
		return answer{Count: o.Count}, nil
	case "socket":
		for range o.Count {
			unix.Socket(unix.AF_UNIX, 11, 0) // no such type: the same
		}
		return answer{Count: o.Count}, nil
	case "run":
		return execute(o)
	}
	return answer{}, errors.New("no such order")
}

func requestFor(addr string) []byte {
	host, _, _ := net.SplitHostPort(addr)
	return []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
}

// shortConnections makes requests, each on a connection of its own, for a time
// or up to a count.
func shortConnections(o order) (answer, error) {
	first := o.Addr
	if o.Via != "" {
		first = o.Via
	}
	addr, err := resolve(first)
	if err != nil {
		return answer{}, err
	}
	ask := requestFor(o.Addr)
	var mu sync.Mutex
	var all []time.Duration
	var a answer
	var wg sync.WaitGroup
	begin := time.Now()
	for range o.Clients {
		wg.Go(func() {
			var took []time.Duration
			failed := 0
			buf := make([]byte, 4096)
			for (o.Count == 0 || len(took)+failed < o.Count) && (o.Millis == 0 || time.Since(begin) < time.Duration(o.Millis)*time.Millisecond) {
				start := time.Now()
				if err := once(addr, o, ask, buf); err != nil {
					failed++
					continue
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			a.Failed += failed
		})
	}
	wg.Wait()
	a.Nanos = time.Since(begin).Nanoseconds()
	a.Count = len(all)
	if len(all) == 0 {
		return a, errors.New("no request was answered")
	}
	slices.Sort(all)
	a.P50, a.P99 = int64(all[len(all)/2]), int64(all[len(all)*99/100])
	return a, nil
}

// resolve looks a name up once, so that what is measured is connections.
func resolve(addr string) (*net.TCPAddr, error) { return net.ResolveTCPAddr("tcp4", addr) }

// once is one connection: a request, and an answer that ends with it.
func once(addr *net.TCPAddr, o order, ask, buf []byte) error {
	c, err := net.DialTCP("tcp4", nil, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := tunnel(c, o); err != nil {
		return err
	}
	if _, err := c.Write(ask); err != nil {
		return err
	}
	got := 0
	for {
		n, err := c.Read(buf)
		got += n
		if errors.Is(err, io.EOF) && got >= len(shortAnswer) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// dial connects to o.Addr, through a tunnel if there is a proxy.
func dial(o order) (net.Conn, error) {
	if o.Via == "" {
		return net.Dial("tcp4", o.Addr)
	}
	c, err := net.Dial("tcp4", o.Via)
	if err != nil {
		return nil, err
	}
	if err := tunnel(c, o); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// tunnel asks the proxy at the other end of c for a tunnel (RFC 9110, 9.3.6),
// if o goes by one.
func tunnel(c net.Conn, o order) error {
	if o.Via == "" {
		return nil
	}
	if _, err := io.WriteString(c, "CONNECT "+o.Addr+" HTTP/1.1\r\nHost: "+o.Addr+"\r\n\r\n"); err != nil {
		return err
	}
	return answered(c)
}

// answered reads the head of an answer, and not a byte more.
func answered(c net.Conn) error {
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
		if _, err := io.ReadFull(c, one); err != nil {
			return fmt.Errorf("no whole answer: %q: %w", head, err)
		}
	}
	if status := strings.Fields(string(head)); len(status) < 2 || status[1] != "200" {
		return fmt.Errorf("the answer is %q", head)
	}
	return nil
}

// streams reads endless answers for a time, o.Clients of them at once, and adds
// them up.
func streams(o order) (answer, error) {
	var a answer
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for range max(o.Clients, 1) {
		wg.Go(func() {
			one, err := stream(o)
			mu.Lock()
			defer mu.Unlock()
			a.Bytes += one.Bytes
			a.Nanos = max(a.Nanos, one.Nanos)
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return a, errors.Join(errs...)
}

// stream reads one endless answer for a time.
func stream(o order) (answer, error) {
	c, err := dial(o)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	if _, err := c.Write(requestFor(o.Addr)); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 256<<10)
	// What the first byte waits for is not the stream's rate.
	if _, err := c.Read(buf); err != nil {
		return answer{}, err
	}
	begin := time.Now()
	var a answer
	for time.Since(begin) < time.Duration(o.Millis)*time.Millisecond {
		n, err := c.Read(buf)
		if err != nil {
			return a, err
		}
		a.Bytes += int64(n)
	}
	a.Nanos = time.Since(begin).Nanoseconds()
	return a, nil
}

// hold opens connections, has each answered once, and keeps them.
func (c *client) hold(o order) (answer, error) {
	for range o.Count {
		conn, err := dial(o)
		if err == nil {
			c.held = append(c.held, conn)
			if _, err = conn.Write(requestFor(o.Addr)); err == nil {
				err = answered(conn)
			}
		}
		if err != nil {
			return answer{Count: len(c.held)}, fmt.Errorf("connection %d: %w", len(c.held), err)
		}
	}
	return answer{Count: len(c.held)}, nil
}

// greet opens a connection to an echo, and returns it once it has answered.
func greet(addr string) (net.Conn, error) {
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		return nil, err
	}
	word := []byte("is anybody there?\n")
	if _, err = conn.Write(word); err == nil {
		_, err = io.ReadFull(conn, word)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// until tries to connect until it is or is no longer allowed: not more often
// than the gateway answers questions for the name.
func until(o order, allowed bool) (answer, error) {
	var a answer
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		a.Count++
		conn, err := greet(o.Addr)
		if err == nil {
			conn.Close()
		}
		if (err == nil) == allowed {
			a.At = monotonic()
			return a, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return a, errors.New("it did not happen")
}

// monotonic is the kernel's clock that namespaces share (clock_gettime(2)), in
// nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}

// find looks at every file below o.Path, o.Count times.
func find(o order) (answer, error) {
	var a answer
	for range o.Count {
		err := filepath.WalkDir(o.Path, func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				a.Count++
				_, err = d.Info()
			}
			return err
		})
		if err != nil {
			return a, err
		}
	}
	return a, nil
}

// open opens and reads every file below o.Path, o.Count times.
func open(o order) (answer, error) {
	var a answer
	var files []string
	err := filepath.WalkDir(o.Path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return a, err
	}
	buf := make([]byte, 4096)
	begin := time.Now()
	for range o.Count {
		for _, file := range files {
			fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return a, err
			}
			n, err := unix.Read(fd, buf)
			unix.Close(fd)
			if err != nil {
				return a, err
			}
			a.Count++
			a.Bytes += int64(n)
		}
	}
	a.Nanos = time.Since(begin).Nanoseconds()
	return a, nil
}

// execute runs a program o.Count times.
func execute(o order) (answer, error) {
	for range o.Count {
		cmd := exec.Command(o.Args[0], o.Args[1:]...)
		cmd.Dir = o.Path
		if out, err := cmd.CombinedOutput(); err != nil {
			return answer{}, errors.New(err.Error() + ": " + string(out))
		}
	}
	return answer{Count: o.Count}, nil
}
