package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func init() { enlist(trickVerbs) } // the table is made by an init of main.go, before this one

var trickVerbs = map[string]verb{
	// bind NETWORK ADDRESS: takes an address with all the sharing that an
	// unprivileged program may ask for, and listens.
	"bind": func(a []string) (string, error) {
		lc := net.ListenConfig{Control: onSocket(func(fd int) error {
			for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
					return err
				}
			}
			return nil
		})}
		if strings.HasPrefix(a[0], "udp") {
			c, err := lc.ListenPacket(context.Background(), a[0], a[1])
			if err == nil {
				c.Close()
			}
			return "", err
		}
		l, err := lc.Listen(context.Background(), a[0], a[1])
		if err == nil {
			l.Close()
		}
		return "", err
	},
	// hijack ADDRESS TO: listens on ADDRESS, any at all since all are local,
	// and connects to TO; who answers?
	"hijack": hijack,
	// option LEVEL NAME VALUE: of a TCP socket.
	"option": func(a []string) (string, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.SetsockoptInt(fd, int(number(a[0])), int(number(a[1])), int(number(a[2])))
	},
	// routed HOST:PORT OPTIONS: a datagram with IP options, in hexadecimal.
	"routed": func(a []string) (string, error) {
		options, err := hex.DecodeString(a[1])
		if err != nil {
			return "", err
		}
		d := &net.Dialer{Control: onSocket(func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(options))
		})}
		return exchange(d, []string{a[0]})
	},
	// big HOST:PORT SIZE: a datagram that is sent in fragments.
	"big": func(a []string) (string, error) {
		c, err := net.Dial("udp", a[0])
		if err != nil {
			return "", err
		}
		defer c.Close()
		if _, err := c.Write(make([]byte, number(a[1]))); err != nil {
			return "", err
		}
		c.SetDeadline(time.Now().Add(time.Second))
		n, err := c.Read(make([]byte, 1500))
		return fmt.Sprintf("%d bytes", n), err
	},
	// group INTERFACE ADDRESS: joins a multicast group and sends to it.
	"group": func(a []string) (string, error) {
		link, err := net.InterfaceByName(a[0])
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		to := [4]byte(net.ParseIP(a[1]).To4())
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: to, Ifindex: int32(link.Index)}); err != nil {
			return "", err
		}
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Index)}); err != nil {
			return "", err
		}
		return "", unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Port: 7000, Addr: to})
	},
	// storm N HOST:PORT...: N connections to each, four at a time; how many
	// said something back.
	"storm": storm,
	// hoard NAME N HOST:PORT BYTES: N connections that stay, after as many
	// bytes of an endless ClientHello; how many there are. Closed by release.
	"hoard":   hoard,
	"release": release,
}

func hijack(a []string) (string, error) {
	l, err := net.Listen("tcp4", a[0])
	if err != nil {
		return "", err
	}
	defer l.Close()
	mine := make(chan struct{})
	go func() {
		if c, err := l.Accept(); err == nil {
			io.WriteString(c, "hijacked\n")
			c.Close()
		}
		close(mine)
	}()
	said, err := exchange(new(net.Dialer), a[1:])
	l.Close()
	<-mine
	return said, err
}

func storm(a []string) (string, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	heard, turn := 0, make(chan struct{}, 4)
	for range int(number(a[0])) {
		for _, to := range a[1:] {
			turn <- struct{}{}
			wg.Go(func() {
				defer func() { <-turn }()
				d := &net.Dialer{Timeout: time.Second}
				c, err := d.Dial("tcp", to)
				if err != nil {
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Second))
				io.WriteString(c, "hello\n")
				if n, _ := c.Read(make([]byte, 16)); n > 0 {
					mu.Lock()
					heard++
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	return fmt.Sprint(heard), nil
}

// hoards are connections by name.
var hoards = struct {
	sync.Mutex
	of map[string][]net.Conn
}{of: map[string][]net.Conn{}}

// endlessHello are n bytes that begin a ClientHello which goes on, in records
// of a hundred bytes.
func endlessHello(n int) []byte {
	b := append([]byte{22, 3, 1, 0, 100, 1, 0, 0xff, 0xf0}, make([]byte, 96)...)
	for len(b) < n {
		b = append(append(b, 22, 3, 1, 0, 100), make([]byte, 100)...)
	}
	return b[:n]
}

func hoard(a []string) (string, error) {
	hoards.Lock()
	defer hoards.Unlock()
	text := endlessHello(int(number(a[3])))
	var last error
	to, err := net.ResolveTCPAddr("tcp4", a[2]) // once: questions are limited
	if err != nil {
		return "", err
	}
	for range int(number(a[1])) {
		c, err := net.DialTimeout("tcp", to.String(), patience)
		if err != nil {
			last = err
			continue
		}
		c.SetWriteDeadline(time.Now().Add(patience))
		if _, err := c.Write(text); err != nil {
			last = err
			c.Close()
			continue
		}
		hoards.of[a[0]] = append(hoards.of[a[0]], c)
	}
	n := len(hoards.of[a[0]])
	if n == 0 {
		return "", errors.Join(errors.New("none"), last)
	}
	return fmt.Sprint(n), nil
}

func release(a []string) (string, error) {
	hoards.Lock()
	defer hoards.Unlock()
	for _, c := range hoards.of[a[0]] {
		c.Close()
	}
	delete(hoards.of, a[0])
	return "", nil
}
