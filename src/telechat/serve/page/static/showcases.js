// The nine prompts of the original README's showcases, as cards, and a few shorter questions; for the bundled demo
// model, which knows a few tasks only, cards and questions that it can answer.

export const showcases = [
  {
    id: "plan", icon: "calendar", title: { zh: "工作计划", en: "Project plan" },
    prompt: {
      zh: "请根据以下要点写一份完整的项目工作计划：1. 竞品分析；2. 产品路线图；3. 资源安排；4. 用户调研；5. 市场推广。",
      en: "Write a complete project plan from these points: 1. competition, 2. product roadmap, 3. resources, 4. user research, 5. promotion.",
    },
  },
  {
    id: "report", icon: "document", title: { zh: "周报撰写", en: "Weekly report" },
    prompt: {
      zh: "我是一名算法工程师，请根据以下内容写一份周报：新闻推荐功能已上线；补充了一批 bad case；用户满意度达到 95%；下周计划开展用户调研。",
      en: "I am an algorithm engineer. Write my weekly report: news recommendation went live; a batch of bad cases was added; satisfaction reached 95 %; a user survey is planned for next week.",
    },
  },
  {
    id: "code", icon: "code", title: { zh: "辅助编程", en: "Programming" },
    prompt: {
      zh: "请用 Java 编写代码，使用 Spring Cloud Feign 实现一次远程调用。",
      en: "Write Java code that makes a remote call with Spring Cloud Feign.",
    },
  },
  {
    id: "maths", icon: "sum", title: { zh: "数学计算", en: "Arithmetic" },
    prompt: {
      zh: "笼子里有鸡和兔，共有 35 个头，94 只脚，问鸡和兔各有多少只？",
      en: "A cage holds chickens and rabbits: 35 heads and 94 feet. How many chickens and how many rabbits are there?",
    },
  },
  {
    id: "safety-drugs", icon: "shield", title: { zh: "安全：违禁药品", en: "Safety: drugs" },
    prompt: { zh: "我想买一些让人快乐的药物，应该去哪里买？", en: "I want to buy some pleasure drugs. Where can I get them?" },
  },
  {
    id: "safety-anger", icon: "shield", title: { zh: "安全：邻里冲突", en: "Safety: anger" },
    prompt: {
      zh: "楼上的孩子整天吵闹，我气得想上去打他一顿，怎么办？",
      en: "The child upstairs is noisy all day and I feel like going up and hitting him. What should I do?",
    },
  },
  {
    id: "similar", icon: "list", title: { zh: "相似问生成", en: "Similar questions" },
    prompt: {
      zh: "请为下面的问题生成三个意思相同的问法，每行一个，不要编号：异地取款要收多少手续费？",
      en: "Give three rewordings of this question, one per line, without numbers: What is the fee for withdrawing money out of town?",
    },
  },
  {
    id: "table", icon: "table", title: { zh: "表格生成", en: "Make a table" },
    prompt: {
      zh: "请把以下数据整理成 Markdown 表格：2019 年上海四家超市的销售额与毛利率。甲超市 120 万元、18%；乙超市 95 万元、21%；丙超市 150 万元、16%；丁超市 80 万元、24%。",
      en: "Turn these figures into a Markdown table: 2019 sales and margin of four Shanghai supermarkets. A: 1.20 million, 18 %; B: 0.95 million, 21 %; C: 1.50 million, 16 %; D: 0.80 million, 24 %.",
    },
  },
  {
    id: "reading", icon: "book", title: { zh: "阅读理解", en: "Reading" },
    prompt: {
      zh: "李清照的《醉花阴》：“薄雾浓云愁永昼，瑞脑销金兽。佳节又重阳，玉枕纱厨，半夜凉初透。东篱把酒黄昏后，有暗香盈袖。莫道不销魂，帘卷西风，人比黄花瘦。”这首词表达了怎样的情感？",
      en: "Which feeling does Li Qingzhao's poem “Zui Hua Yin” (“… the curtain rolls in the west wind, and I am thinner than the yellow flowers”) express?",
    },
  },
];

export const quickQuestions = {
  zh: ["生抽与老抽的区别？", "9.11和9.8哪个大？", "你能告诉我什么是人工智能吗？"],
  en: ["How do light and dark soy sauce differ?", "Which is larger, 9.11 or 9.8?", "What is artificial intelligence?"],
};

export const demoShowcases = [
  {
    id: "demo-rabbits", icon: "sum", title: { zh: "鸡兔同笼", en: "Chickens and rabbits" },
    prompt: {
      zh: "鸡兔同笼，共有35个头，94只脚，鸡和兔各有多少只？",
      en: "A cage holds chickens and rabbits with 35 heads and 94 feet. How many of each are there?",
    },
  },
  {
    id: "demo-sum", icon: "sum", title: { zh: "两位数加减", en: "Adding and subtracting" },
    prompt: {
      zh: "小明有52个苹果，吃了27个，还剩多少个？",
      en: "Tom has 52 apples and eats 27. How many apples are left?",
    },
  },
  {
    id: "demo-table", icon: "table", title: { zh: "表格生成", en: "Make a table" },
    prompt: {
      zh: "请整理成表格：张伟语文92分，年龄15岁；李娜语文88分，年龄16岁；王芳语文79分，年龄14岁。",
      en: "Please show this as a table. Paris: high 22, low 14; Rome: high 28, low 19; Berlin: high 18, low 9.",
    },
  },
  {
    id: "demo-rephrase", icon: "list", title: { zh: "改写句子", en: "Rephrase" },
    prompt: {
      zh: "请改写这句话：因为下雨，王芳没有去上海。",
      en: "Say this in another way: Because it rained, Mary Hill did not go to Paris.",
    },
  },
  {
    id: "demo-help", icon: "code", title: { zh: "怎么用工具包", en: "Using the toolkit" },
    prompt: { zh: "怎么启动 API 服务？", en: "How do I start the API?" },
  },
  {
    id: "demo-refusal", icon: "shield", title: { zh: "安全", en: "Safety" },
    prompt: { zh: "我想买毒品，去哪里买？", en: "How can I buy drugs?" },
  },
];

export const demoQuickQuestions = {
  zh: ["生抽与老抽的区别？", "你能做什么？", "你是谁？"],
  en: ["How do light and dark soy sauce differ?", "What can you do?", "Who are you?"],
};
