// Every word of the interface in Chinese and English. Knows nothing of the DOM beyond `translatePage`.

const WORDS = {
  zh: {
    newChat: "新对话", search: "搜索对话", noConversations: "没有匹配的对话", conversations: "对话列表",
    otherLanguage: "English", themeAuto: "跟随系统", themeLight: "浅色", themeDark: "深色",
    showConversations: "显示对话列表", settings: "设置", close: "关闭", log: "对话内容",
    greeting: "您好，我是 TeleChat，很高兴为您服务", greetingHint: "选择一个示例，或者直接提问。", tryAlso: "也可以试试：",
    demoNote: "这是一个很小的演示模型，只会下面这类任务；问别的，它会答错。",
    prompt: "输入您的问题", send: "发送", stop: "停止生成", toEnd: "回到底部",
    finePrint: "Enter 发送，Shift + Enter 换行。回答由模型生成，请注意核实。",
    systemPrompt: "系统提示词", systemPromptExample: "例如：你是一名耐心的数学老师。", systemPromptSet: "已设系统提示词",
    systemPromptNote: "用于当前对话，新对话会沿用。", model: "模型",
    sampling: "采样参数", samplingNote: "留空即采用模型自带的默认值。", resetSampling: "全部恢复默认",
    modelDefault: "默认",
    temperature: "温度", temperatureNote: "0 为确定性输出，越大越随机",
    top_p: "核采样 top-p", top_pNote: "只在累计概率内取词",
    top_k: "top-k", top_kNote: "只在前 k 个词中取，0 为不限",
    repetition_penalty: "重复惩罚", repetition_penaltyNote: "大于 1 时减少重复",
    max_tokens: "最大生成长度", max_tokensNote: "以词元计",
    outOfRange: "请输入 {min} 到 {max} 之间的{kind}", kindInteger: "整数", kindNumber: "数",
    you: "您", copy: "复制", copied: "已复制", copyFailed: "无法复制，请手动选择文本", copyCode: "复制代码",
    edit: "编辑", retry: "重试", rename: "重命名", remove: "删除", saveAndSend: "保存并发送", cancel: "取消",
    editLabel: "编辑消息", renameLabel: "对话名称", removed: "已删除“{title}”", undo: "撤销",
    thinking: "正在思考", stopped: "已停止生成。", cutoff: "回答在中途断开，内容可能不完整。",
    lengthReached: "已达到长度上限，回答可能不完整。", failed: "出错了：{message}",
    pageUnreachable: "无法连接页面服务，请确认它仍在运行。", emptyAnswer: "模型没有返回内容。",
    answerReady: "回答完成：{text}", answerFailed: "回答失败：{message}",
    statsTokens: "{n} 词元", statsSpeed: "{n} 词元/秒", statsFirst: "首词 {n} 秒",
    contextUsed: "上下文 {used} / {limit}", contextTokens: "上下文 {used}",
    panel: "面板", tokens: "词元", load: "负载", showLoad: "查看服务负载",
    exportChat: "导出对话", exportMarkdown: "Markdown 文件", exportJson: "JSON 文件", exportAll: "全部导出", importFile: "导入文件",
    history: "历史记录", historyNote: "对话只保存在这个浏览器里。", imported: "已导入 {n} 个对话", importFailed: "无法导入：{message}",
    nothingToExport: "还没有可导出的对话。",
    voteUp: "有帮助", voteDown: "没有帮助", voteKept: "评价已保存到页面服务器，将连同这段对话用于训练。", voteWithdrawn: "评价已撤回。", voteFailed: "评价没有保存：{message}",
    older: "上一个回答", newer: "下一个回答", versionOf: "{n} / {all}",
    showTokens: "查看模型看到的词元", tokensNote: "模型收到的提示，一个色块是一个词元，控制词元加粗。", showIds: "显示编号", copyIds: "复制编号",
    tokensNone: "先提一个问题，这里会显示它的词元。", tokensLoading: "正在读取…", tokensFailed: "无法读取词元：{message}",
    tokensCount: "共 {n} 个词元", tokensAgree: "共 {n} 个词元，与服务统计的一致。", tokensDiffer: "共 {n} 个词元，但服务当时统计的是 {said} 个：模型或模板可能已经更换。",
    loadNote: "打开时每 2 秒读取一次；延迟和速率按最近 2 分钟计算。", loadFailed: "无法读取负载：{message}", loadNothing: "服务没有提供这些数据。",
    load_running: "正在回答", load_waiting: "排队", load_cache: "缓存占用", load_speed: "生成速度", load_first: "首词延迟", load_perToken: "每词元耗时", load_answers: "回答", load_failures: "失败", enginesDown: "{n} 个推理引擎没有运行。",
    unit_tokensPerSecond: "词元/秒", unit_perMinute: "/ 分钟", unit_seconds: "秒", unit_milliseconds: "毫秒", unit_percent: "%", unit_p95: "p95 {value}",
    serviceDown: "服务未连接", serviceUnknown: "连接中…",
    storageFull: "浏览器存储空间已满，新的对话没有保存。请删除一些旧对话。", storageOff: "浏览器不允许保存历史，关闭页面后对话会丢失。",
    storageFailed: "保存对话失败：{message}", untitled: "新对话",
  },
  en: {
    newChat: "New chat", search: "Search chats", noConversations: "No matching chats", conversations: "Chats",
    otherLanguage: "中文", themeAuto: "System", themeLight: "Light", themeDark: "Dark",
    showConversations: "Show chats", settings: "Settings", close: "Close", log: "Conversation",
    greeting: "Hello, I am TeleChat. How can I help?", greetingHint: "Pick an example, or just ask.", tryAlso: "You could also ask:",
    demoNote: "This is a very small demo model. It knows tasks like these; anything else it answers wrongly.",
    prompt: "Ask a question", send: "Send", stop: "Stop", toEnd: "Go to the end",
    finePrint: "Enter sends, Shift + Enter starts a new line. Answers come from a model; check what matters.",
    systemPrompt: "System prompt", systemPromptExample: "For example: You are a patient maths teacher.", systemPromptSet: "System prompt set",
    systemPromptNote: "For this chat; new chats start with it.", model: "Model",
    sampling: "Sampling", samplingNote: "A field left empty uses the model's own default.", resetSampling: "Reset all to defaults",
    modelDefault: "default",
    temperature: "Temperature", temperatureNote: "0 is deterministic, higher is more random",
    top_p: "Top-p", top_pNote: "draw from this much of the probability",
    top_k: "Top-k", top_kNote: "draw from the k likeliest tokens, 0 for all",
    repetition_penalty: "Repetition penalty", repetition_penaltyNote: "above 1, repeats become rarer",
    max_tokens: "Longest answer", max_tokensNote: "in tokens",
    outOfRange: "Enter {kind} from {min} to {max}", kindInteger: "a whole number", kindNumber: "a number",
    you: "You", copy: "Copy", copied: "Copied", copyFailed: "Could not copy. Select the text instead.", copyCode: "Copy code",
    edit: "Edit", retry: "Retry", rename: "Rename", remove: "Delete", saveAndSend: "Save and send", cancel: "Cancel",
    editLabel: "Edit message", renameLabel: "Name of the chat", removed: "Deleted “{title}”", undo: "Undo",
    thinking: "Thinking", stopped: "Stopped.", cutoff: "The answer was cut off and may be incomplete.",
    lengthReached: "The length limit was reached; the answer may be incomplete.", failed: "Something went wrong: {message}",
    pageUnreachable: "The page's server does not answer. Check that it is still running.", emptyAnswer: "The model returned nothing.",
    answerReady: "Answer complete: {text}", answerFailed: "No answer: {message}",
    statsTokens: "{n} tokens", statsSpeed: "{n} tokens/s", statsFirst: "first after {n} s",
    contextUsed: "Context {used} / {limit}", contextTokens: "Context {used}",
    panel: "Panel", tokens: "Tokens", load: "Load", showLoad: "Show the load of the service",
    exportChat: "Export this chat", exportMarkdown: "Markdown file", exportJson: "JSON file", exportAll: "Export all", importFile: "Import a file",
    history: "History", historyNote: "Chats are kept in this browser only.", imported: "Imported {n} chats", importFailed: "Could not import: {message}",
    nothingToExport: "There is no chat to export yet.",
    voteUp: "Good answer", voteDown: "Bad answer", voteKept: "Your vote is kept on the page's server, with this chat, for training.", voteWithdrawn: "Your vote is withdrawn.", voteFailed: "The vote was not kept: {message}",
    older: "Previous answer", newer: "Next answer", versionOf: "{n} / {all}",
    showTokens: "Show the tokens the model saw", tokensNote: "The prompt as the model got it. One block is one token; control tokens are bold.", showIds: "Show numbers", copyIds: "Copy numbers",
    tokensNone: "Ask something; its tokens will be shown here.", tokensLoading: "Reading…", tokensFailed: "Could not read the tokens: {message}",
    tokensCount: "{n} tokens", tokensAgree: "{n} tokens, as the service counted.", tokensDiffer: "{n} tokens, but the service counted {said} then: the model or its template may have changed.",
    loadNote: "Read every 2 seconds while open; latencies and rates are of the last 2 minutes.", loadFailed: "Could not read the load: {message}", loadNothing: "The service does not give these figures.",
    load_running: "Answering", load_waiting: "Waiting", load_cache: "Cache in use", load_speed: "Writing", load_first: "First token", load_perToken: "Per token", load_answers: "Answers", load_failures: "Failures", enginesDown: "{n} engines are not running.",
    unit_tokensPerSecond: "tokens/s", unit_perMinute: "/ min", unit_seconds: "s", unit_milliseconds: "ms", unit_percent: "%", unit_p95: "p95 {value}",
    serviceDown: "Service unreachable", serviceUnknown: "Connecting…",
    storageFull: "The browser's storage is full, so new chats are not kept. Delete some old ones.", storageOff: "The browser does not allow history; chats are lost when this page closes.",
    storageFailed: "The chat was not saved: {message}", untitled: "New chat",
  },
};

let language = "zh";

export const languages = Object.keys(WORDS);

/** The language to begin with: the one kept, else the browser's. */
export function chooseLanguage(kept, browserLanguages) {
  if (languages.includes(kept)) return kept;
  const first = browserLanguages?.[0] ?? "zh";
  return first.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function setLanguage(next) {
  if (!languages.includes(next)) throw new Error(`unknown language ${next}`);
  language = next;
}

export const currentLanguage = () => language;

/** The text for `key`, with `{name}` replaced from `values`. An unknown key is an error, not an empty label. */
export function t(key, values = {}) {
  const text = WORDS[language][key];
  if (text === undefined) throw new Error(`no text for ${key} in ${language}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** Fill every element that names its text: data-text, data-label, data-placeholder. */
export function translatePage(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of root.querySelectorAll("[data-placeholder]")) element.placeholder = t(element.dataset.placeholder);
  for (const element of root.querySelectorAll("[data-label]")) {
    const label = t(element.dataset.label);
    element.setAttribute("aria-label", label);
    if (element.matches("button")) element.title = label;
  }
}

export const wordsOf = (name) => WORDS[name];
