package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a verb waits for the network. Nothing that a sandbox is
// refused may take that long: refusals come at once.
const patience = 5 * time.Second

// held are the listeners of hold.
var held sync.Map

var networkVerbs = map[string]verb{
	// dial HOST:PORT [TEXT]: connects, says TEXT, and returns the first line
	// of the answer.
	"dial": func(a []string) (string, error) { return exchange(new(net.Dialer), a) },
	// dial-over INTERFACE HOST:PORT [TEXT]: the same with SO_BINDTODEVICE.
	"dial-over": func(a []string) (string, error) {
		d := &net.Dialer{Control: onSocket(func(fd int) error { return unix.BindToDevice(fd, a[0]) })}
		return exchange(d, a[1:])
	},
	// dial-marked MARK HOST:PORT: the same with SO_MARK.
	"dial-marked": func(a []string) (string, error) {
		d := &net.Dialer{Control: onSocket(func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(number(a[0])))
		})}
		return exchange(d, a[1:])
	},
	// dial-mptcp HOST:PORT [TEXT]
	"dial-mptcp": func(a []string) (string, error) {
		d := new(net.Dialer)
		d.SetMultipathTCP(true)
		return exchange(d, a)
	},
	"dial-fast": fastOpen,
	"dial-from": func(a []string) (string, error) {
		return exchange(&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(a[0])}}, a[1:])
	},
	// open NAME HOST:PORT [NETWORK], then say NAME TEXT and hear NAME: a connection that
	// stays. hear returns one line, or how the connection ended.
	// send-unixgram PATH TEXT
	"send-unixgram": func(a []string) (string, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Sendto(fd, []byte(a[1]), 0, &unix.SockaddrUnix{Name: a[0]})
	},
	"open":  openConn,
	"say":   func(a []string) (string, error) { return sayTo(a[0], a[1]) },
	"hear":  func(a []string) (string, error) { return hearFrom(a[0]) },
	"close": closeConn,
	// http HOST:PORT NAME [PATH]: the status line and body of a GET that names
	// another host, if it likes.
	"http": httpGet,
	// tls HOST:PORT SNI: the same over TLS.
	"tls": tlsGet,
	// udp HOST:PORT: one datagram, and what comes back.
	"udp": func(a []string) (string, error) { return datagram("udp", a[0]) },
	// send HOST:PORT: one datagram to an address that nobody answers for.
	"send": func(a []string) (string, error) {
		c, err := net.Dial("udp", a[0])
		if err != nil {
			return "", err
		}
		defer c.Close()
		_, err = io.WriteString(c, "hello\n")
		return "", err
	},
	// resolve NAME: by the image's own resolv.conf.
	"resolve": func(a []string) (string, error) { return lookUp(new(net.Resolver), a[0]) },
	// ask NETWORK SERVER:PORT NAME: by another resolver.
	"ask": func(a []string) (string, error) { return lookUp(resolverAt(a[0], a[1]), a[2]) },
	// text NAME [NETWORK SERVER:PORT]: a TXT question.
	"text": func(a []string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r := net.DefaultResolver
		if len(a) > 1 {
			r = resolverAt(a[1], a[2])
		}
		got, err := r.LookupTXT(ctx, a[0])
		return strings.Join(got, " "), err
	},
	// socket FAMILY TYPE PROTOCOL
	"socket": func(a []string) (string, error) {
		fd, err := unix.Socket(int(number(a[0])), int(number(a[1])), int(number(a[2])))
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	},
	// sctp HOST PORT, ping HOST
	"sctp": func(a []string) (string, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Connect(fd, &unix.SockaddrInet4{Port: int(number(a[1])), Addr: [4]byte(net.ParseIP(a[0]).To4())})
	},
	"ping": ping,
	// unix NETWORK PATH: connects; a path that begins with @ is abstract.
	"unix": func(a []string) (string, error) {
		c, err := net.Dial(a[0], a[1])
		if err == nil {
			c.Close()
		}
		return "", err
	},
	"listen": func(a []string) (string, error) {
		l, err := net.Listen("tcp", a[0])
		if err == nil {
			l.Close()
		}
		return "", err
	},
	// hold NETWORK ADDRESS: says hello to whoever connects, until the probe ends.
	// squat KIND ADDR takes an address and does nothing with it.
	"squat": func(a []string) (string, error) {
		to, err := netip.ParseAddrPort(a[1])
		if err != nil {
			return "", err
		}
		kind := map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM}[a[0]]
		if to.Addr().Is6() {
			fd, err := unix.Socket(unix.AF_INET6, kind, 0)
			if err != nil {
				return "", err
			}
			return "", unix.Bind(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
		}
		fd, err := unix.Socket(unix.AF_INET, kind, 0)
		if err != nil {
			return "", err
		}
		return "", unix.Bind(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	},
	"hold": func(a []string) (string, error) {
		l, err := net.Listen(a[0], a[1])
		if err == nil {
			held.Store(l, true)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, "hello\n")
					c.Close()
				}
			}()
		}
		return "", err
	},
	// echo NETWORK ADDRESS: says what it hears to whoever says it, until the
	// probe ends.
	"echo": func(a []string) (string, error) {
		if strings.HasPrefix(a[0], "udp") {
			c, err := net.ListenPacket(a[0], a[1])
			if err == nil {
				held.Store(c, true)
				go func() {
					b := make([]byte, 2048)
					for {
						n, from, err := c.ReadFrom(b)
						if err != nil {
							return
						}
						c.WriteTo(b[:n], from)
					}
				}()
			}
			return "", err
		}
		l, err := net.Listen(a[0], a[1])
		if err == nil {
			held.Store(l, true)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() { io.Copy(c, c); c.Close() }()
				}
			}()
		}
		return "", err
	},
	"interfaces": func([]string) (string, error) {
		links, err := net.Interfaces()
		var names []string
		for _, l := range links {
			names = append(names, l.Name)
		}
		return strings.Join(names, " "), err
	},
	// link-down: brings lo down by ioctl, as whoever holds CAP_NET_ADMIN may.
	"link-down": func([]string) (string, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		r, err := unix.NewIfreq("lo")
		if err != nil {
			return "", err
		}
		return "", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	},
}

func onSocket(set func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		if cerr := raw.Control(func(fd uintptr) { err = set(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}
}

func exchange(d *net.Dialer, a []string) (string, error) {
	d.Timeout = patience
	c, err := d.Dial("tcp", a[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	text := "a greeting that is no protocol's"
	if len(a) > 1 {
		text = a[1]
	}
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return "", err
	}
	return firstLine(bufio.NewReader(c))
}

func firstLine(r *bufio.Reader) (string, error) {
	said, err := r.ReadString('\n')
	if said != "" {
		err = nil
	}
	return strings.TrimSpace(said), err
}

// fastOpen sends data with the SYN (MSG_FASTOPEN), without connect(2).
func fastOpen(a []string) (string, error) {
	to, err := net.ResolveTCPAddr("tcp4", a[0])
	if err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return "", err
	}
	if err := unix.Sendto(fd, []byte("hello\n"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return strings.TrimSpace(string(buf[:max(n, 0)])), err
}

// conns are the connections that stay.
var conns struct {
	sync.Mutex
	of map[string]*kept
}

type kept struct {
	net.Conn
	r *bufio.Reader
}

func openConn(a []string) (string, error) {
	c, err := net.DialTimeout(cmp.Or(strings.Join(a[2:], ""), "tcp"), a[1], patience)
	if err != nil {
		return "", err
	}
	conns.Lock()
	defer conns.Unlock()
	if conns.of == nil {
		conns.of = map[string]*kept{}
	}
	conns.of[a[0]] = &kept{c, bufio.NewReader(c)}
	return "", nil
}

func conn(name string) (*kept, error) {
	conns.Lock()
	defer conns.Unlock()
	if c := conns.of[name]; c != nil {
		return c, nil
	}
	return nil, errors.New("there is no connection " + name)
}

func sayTo(name, text string) (string, error) {
	c, err := conn(name)
	if err == nil {
		_, err = io.WriteString(c, text+"\n")
	}
	return "", err
}

func hearFrom(name string) (string, error) {
	c, err := conn(name)
	if err != nil {
		return "", err
	}
	c.SetReadDeadline(time.Now().Add(patience))
	return firstLine(c.r)
}

func closeConn(a []string) (string, error) {
	c, err := conn(a[0])
	if err != nil {
		return "", err
	}
	return "", c.Close()
}

func httpGet(a []string) (string, error) {
	c, err := net.DialTimeout("tcp", a[0], patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return get(c, a[1:])
}

func tlsGet(a []string) (string, error) {
	c, err := net.DialTimeout("tcp", a[0], patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	// The far end is a test's; whether it is the right one is what is tried.
	t := tls.Client(c, &tls.Config{ServerName: a[1], InsecureSkipVerify: true})
	if err := t.Handshake(); err != nil {
		return "", err
	}
	return get(t, a[1:])
}

// get makes one request and returns the status and the body.
func get(c net.Conn, a []string) (string, error) {
	path := "/"
	if len(a) > 1 {
		path = a[1]
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, a[0]); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	if len(b) == 0 {
		if err == nil {
			err = io.EOF
		}
		return "", err
	}
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	status, _, _ := strings.Cut(head, "\r\n")
	return strings.TrimPrefix(status, "HTTP/1.1 ") + " " + strings.TrimSpace(body), nil
}

func datagram(network, to string) (string, error) {
	c, err := net.Dial(network, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	return fmt.Sprintf("%d bytes", n), err
}

// ping sends an echo request over an unprivileged ICMP socket.
func ping(a []string) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return "", err
	}
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 1}
	if err := unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(a[0]).To4())}); err != nil {
		return "", err
	}
	_, err = unix.Read(fd, make([]byte, 100))
	return "", err
}

// resolverAt asks one server, by one network.
func resolverAt(network, server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
}

func lookUp(r *net.Resolver, name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addrs, err := r.LookupNetIP(ctx, "ip", name)
	if fault, ok := errors.AsType[*net.DNSError](err); ok && fault.IsNotFound {
		return "", errors.New("no such host")
	}
	var got []string
	for _, a := range addrs {
		got = append(got, a.Unmap().String())
	}
	return strings.Join(got, " "), err
}
