package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// floodVerbs do one thing many times, and stay.
var floodVerbs = map[string]verb{
	// keep NAME N HOST:PORT: N connections that an echo answers on, and that
	// stay; how many there are. Closed by release.
	"keep": func(a []string) (string, error) { return many(a, greetAndHear) },
	// mute NAME N HOST:PORT: N connections that say one line and never read.
	"mute": func(a []string) (string, error) {
		return many(a, func(c net.Conn) error { _, err := io.WriteString(c, "hello\n"); return err })
	},
	// stuff NAME N HOST:PORT: N connections, each written to until it takes no
	// more.
	"stuff": func(a []string) (string, error) { return many(a, fill) },
	// still NAME: of the connections kept, how many are answered on.
	"still": still,
	// over NAME: waits for the end of each of the connections kept; how many
	// ended, and how many go on.
	"over": over,
	// questions N SUFFIX: asks for N names below SUFFIX without waiting; how
	// many answers there were.
	"questions": questions,
	// packets N HOST:PORT: sends N datagrams; how many the kernel took.
	"packets": packets,
}

// many opens connections, 32 at a time, and keeps those that begin as wanted.
func many(a []string, begin func(net.Conn) error) (string, error) {
	to, err := net.ResolveTCPAddr("tcp4", a[2]) // once: questions are limited
	if err != nil {
		return "", err
	}
	var wg sync.WaitGroup
	var last error
	turn := make(chan struct{}, 32)
	for range int(number(a[1])) {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			c, err := net.DialTimeout("tcp", to.String(), patience)
			if err == nil {
				c.SetDeadline(time.Now().Add(patience))
				if err = begin(c); err != nil {
					c.Close()
				}
			}
			hoards.Lock()
			defer hoards.Unlock()
			if err != nil {
				last = err
				return
			}
			hoards.of[a[0]] = append(hoards.of[a[0]], c)
		})
	}
	wg.Wait()
	hoards.Lock()
	defer hoards.Unlock()
	if len(hoards.of[a[0]]) == 0 {
		return "", errors.Join(errors.New("none"), last)
	}
	return fmt.Sprint(len(hoards.of[a[0]])), nil
}

func greetAndHear(c net.Conn) error {
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	said, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	if err == nil && said != "hello\n" {
		err = fmt.Errorf("heard %q", said)
	}
	return err
}

// fill writes until the far end and all between take no more.
func fill(c net.Conn) error {
	c.SetWriteDeadline(time.Now().Add(patience / 10))
	for block := make([]byte, 64<<10); ; {
		if _, err := c.Write(block); err != nil {
			if fault, ok := errors.AsType[net.Error](err); ok && fault.Timeout() {
				return nil
			}
			return err
		}
	}
}

// each does something on all connections of a name at once and counts where it
// went well.
func each(name string, do func(net.Conn) bool) (well, all int) {
	hoards.Lock()
	list := hoards.of[name]
	hoards.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, c := range list {
		wg.Go(func() {
			c.SetDeadline(time.Now().Add(patience))
			if do(c) {
				mu.Lock()
				well++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return well, len(list)
}

func still(a []string) (string, error) {
	well, _ := each(a[0], func(c net.Conn) bool { return greetAndHear(c) == nil })
	return fmt.Sprint(well), nil
}

func over(a []string) (string, error) {
	ended, all := each(a[0], func(c net.Conn) bool {
		_, err := io.Copy(io.Discard, c)
		fault, ok := errors.AsType[net.Error](err)
		return !ok || !fault.Timeout()
	})
	return fmt.Sprint(ended, " ", all-ended), nil
}

// packets sends datagrams from a socket that hears of no refusal.
func packets(a []string) (string, error) {
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		return "", err
	}
	defer c.Close()
	to, err := net.ResolveUDPAddr("udp4", a[1])
	if err != nil {
		return "", err
	}
	sent := 0
	for range int(number(a[0])) {
		if _, err := c.WriteTo([]byte("hello"), to); err == nil {
			sent++
		}
	}
	return fmt.Sprint(sent), nil
}

func questions(a []string) (string, error) {
	c, err := net.Dial("udp", "198.18.0.1:53") // whatever the address, the gateway answers
	if err != nil {
		return "", err
	}
	defer c.Close()
	answers := make(chan int)
	go func() {
		n := 0
		for buf := make([]byte, 1500); ; n++ {
			if _, err := c.Read(buf); err != nil {
				answers <- n
				return
			}
		}
	}()
	for i := range int(number(a[0])) {
		_, _ = c.Write(question(fmt.Sprintf("n%d.%s", i, a[1])))
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	return fmt.Sprint(<-answers), nil
}

// question is one for the address of a name (RFC 1035, 4.1).
func question(name string) []byte {
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		q = append(append(q, byte(len(label))), label...)
	}
	return binary.BigEndian.AppendUint32(append(q, 0), 1<<16|1)
}
